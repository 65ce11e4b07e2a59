"""The head of an adapter over an encoder, or over a causal base that is read as one."""

from dataclasses import dataclass
from pathlib import Path

from serve.adapter.folder import HEAD, AdapterError, named
from serve.base import BaseKind, BaseShapes
from serve.tensors import TensorFile


@dataclass(frozen=True)
class HeadShape:
    """What an adapter's own head looks like."""

    labels: int
    hidden: int
    normalize: bool
    """L2-normalise the pooled vector first."""
    pair: str | None
    """`towers` if the head reads a pair as u, v, |u-v|, u*v, so that its input is four times
    `hidden`."""


def check_head(
    path: Path,
    base_kind: BaseKind | None,
    rows: int | None,
    base: BaseShapes | None,
) -> HeadShape | None:
    """The head's shape, once it is sound and stands under an encoder. Raises AdapterError, TensorError."""
    if not path.is_file():
        if base_kind == "encoder":
            raise AdapterError(
                f"{HEAD} is missing; under an encoder each adapter has a head of its own."
            )
        return None
    if base_kind == "causal":
        raise AdapterError(
            f"{HEAD} is not for a base that scores labels as text; for heads over a causal base say "
            '"kind": "encoder" in bundle.json.'
        )
    file = TensorFile(path)
    if set(file.tensors) != {"weight", "bias"}:
        raise AdapterError(
            f"{HEAD} must hold 'weight' and 'bias', not {named(sorted(file.tensors))}."
        )
    weight, bias = file.tensors["weight"].shape, file.tensors["bias"].shape
    if len(weight) != 2 or bias != weight[:1]:
        raise AdapterError(
            f"{HEAD} must hold a weight of [labels, hidden] and a bias of [labels], not "
            f"{list(weight)} and {list(bias)}."
        )
    if rows is not None and weight[0] != rows:
        raise AdapterError(
            f"{HEAD} has {weight[0]} rows, but the ensemble needs {rows}: one a label, or one for "
            "the value of regression."
        )
    shape = _head_shape(weight, file.metadata)
    if base is not None and base.hidden is not None and shape.hidden != base.hidden:
        raise AdapterError(
            f"{HEAD} reads vectors of {shape.hidden} values, but the base gives {base.hidden}."
        )
    for name in file.tensors:
        file.check_finite(name)
    return shape


def _head_shape(weight: tuple[int, ...], metadata: dict[str, str]) -> HeadShape:
    unknown = sorted(set(metadata) - {"normalize", "pair", "format"})
    if unknown:
        raise AdapterError(
            f"{HEAD} has unknown metadata {named(unknown)}; known are normalize and pair."
        )
    normalize, pair = metadata.get("normalize", "false"), metadata.get("pair")
    if normalize not in ("true", "false"):
        raise AdapterError(f"'normalize' in {HEAD} must be 'true' or 'false', not {normalize!r}.")
    if pair not in (None, "towers"):
        raise AdapterError(f"'pair' in {HEAD} must be 'towers', not {pair!r}.")
    width = 4 if pair else 1
    if weight[1] % width:
        raise AdapterError(
            f"A head with pair=towers reads 4 vectors; {weight[1]} is not a multiple of 4."
        )
    return HeadShape(weight[0], weight[1] // width, normalize == "true", pair)

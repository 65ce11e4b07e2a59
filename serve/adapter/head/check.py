"""Checks the head of an adapter over an encoder, or over a causal base that is read by heads."""

from dataclasses import dataclass
from pathlib import Path

from serve.adapter.folder import HEAD, WEIGHTS, AdapterError, named
from serve.adapter.head.peft_score import BIAS, SCORE, WEIGHT
from serve.adapter.wrappers import adapter_tensors
from serve.base.folder import BaseKind, BaseShapes, pooling_of
from serve.tensors import TensorError, TensorFile


@dataclass(frozen=True)
class HeadShape:
    """The shape of an adapter's own head."""

    labels: int
    hidden: int
    normalize: bool
    """Whether the pooled vector is L2-normalised first."""
    pair: str | None
    """`towers` if the head reads a pair of texts as u, v, |u-v|, u*v. Its input is then 4 x `hidden` wide."""


def has_head(folder: Path) -> bool:
    """Returns whether an adapter brings its own head, in a file or among its tensors."""
    if (folder / HEAD).is_file():
        return True
    try:
        return WEIGHT in adapter_tensors(folder).tensors
    except TensorError:
        return False


def check_head(
    folder: Path,
    adapter: TensorFile,
    base_kind: BaseKind | None,
    rows: int | None,
    base: BaseShapes | None,
) -> HeadShape | None:
    """Returns the shape of the head in a folder or among its `adapter`'s tensors; None if there is none and none is
    needed.

    `rows` is the number of rows that it must have. Raises AdapterError and TensorError if the head is unsound, is
    missing under an encoder, or stands under a causal base."""
    inside = any(name in adapter.tensors for name in SCORE)
    if (folder / HEAD).is_file():
        if inside:
            raise AdapterError(
                f"It has two heads, {HEAD} and the tensor {WEIGHT!r}; leave one of them out."
            )
        name = HEAD
    elif inside:
        name = "score"
    elif base_kind == "encoder":
        raise AdapterError(
            f"{HEAD} is missing; under a base that heads read each adapter has a head of its own (under "
            "a causal model the 'score' of PEFT's sequence classifiers does)."
        )
    else:
        return None
    if base_kind == "causal":
        raise AdapterError(
            f"The head ({name}) is not for a base that scores labels as text; for heads over a causal "
            'base say "kind": "encoder" in bundle.json.'
        )
    if name == HEAD:
        head = TensorFile(folder / HEAD)
        shape = _check_own(head, rows)
        checked = tuple(head.tensors)
    else:
        head = adapter
        shape = _check_score(head, rows, base)
        checked = tuple(each for each in SCORE if each in head.tensors)
    if base is not None and base.hidden is not None and shape.hidden != base.hidden:
        raise AdapterError(
            f"The head ({name}) reads vectors of {shape.hidden} values, but the base gives {base.hidden}."
        )
    for each in checked:
        head.check_finite(each)
    return shape


def _check_own(head: TensorFile, rows: int | None) -> HeadShape:
    if set(head.tensors) != {"weight", "bias"}:
        raise AdapterError(
            f"{HEAD} must hold 'weight' and 'bias', not {named(sorted(head.tensors))}."
        )
    weight, bias = head.tensors["weight"].shape, head.tensors["bias"].shape
    _check_rows(HEAD, weight, bias, rows)
    return _head_shape(weight, head.metadata)


def _check_score(adapter: TensorFile, rows: int | None, base: BaseShapes | None) -> HeadShape:
    if WEIGHT not in adapter.tensors:
        raise AdapterError(f"{WEIGHTS} holds a bias of 'score' without its weight.")
    if base is not None and pooling_of(base.config) != "last":
        raise AdapterError(
            "Its head 'score' reads the last token, but this encoder gives the mean over the tokens; "
            f"train a head for that and store it as {HEAD}."
        )
    weight = adapter.tensors[WEIGHT].shape
    bias = adapter.tensors[BIAS].shape if BIAS in adapter.tensors else weight[:1]
    _check_rows("score", weight, bias, rows)
    return HeadShape(weight[0], weight[1], normalize=False, pair=None)


def _check_rows(
    name: str, weight: tuple[int, ...], bias: tuple[int, ...], rows: int | None
) -> None:
    if len(weight) != 2 or bias != weight[:1]:
        raise AdapterError(
            f"{name} must hold a weight of [labels, hidden] and a bias of [labels], not "
            f"{list(weight)} and {list(bias)}."
        )
    if rows is not None and weight[0] != rows:
        raise AdapterError(
            f"{name} has {weight[0]} rows, but the ensemble needs {rows}: one a label, or one for "
            "the value of regression."
        )


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

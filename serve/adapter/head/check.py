"""Checks the head of an adapter over an encoder, or over a causal base that is read by heads."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

from serve.adapter.classifiers import STEM, is_part
from serve.adapter.folder import HEAD, AdapterError, named
from serve.adapter.head.layers import ACTIVATIONS
from serve.adapter.head.peft_head import PeftHead, find_peft_head, has_peft_head
from serve.adapter.wrappers import adapter_tensors
from serve.base.folder import BaseKind, BaseShapes, Pooling, pooling_of
from serve.base.two_towers import towers_of
from serve.tensors import TensorError, TensorFile

_LINEAR = {"weight", "bias"}
_HIDDEN = {"hidden_weight", "hidden_bias"}
_METADATA = ("activation", "normalize", "pair", "pooling")


@dataclass(frozen=True)
class HeadShape:
    """The shape of an adapter's own head."""

    labels: int
    hidden: int
    """The width of the pooled vector that it reads."""
    normalize: bool
    """Whether a text's vector is L2-normalised before the linear layer."""
    pair: str | None
    """`towers` if the head reads a pair of texts as u, v, |u-v|, u*v. Its input is then 4 x as wide."""
    pooling: Pooling | None = None
    """Which vector of a text it reads, if it says so."""


def has_head(folder: Path) -> bool:
    """Returns whether an adapter brings its own head, in a file or among its tensors."""
    if (folder / HEAD).is_file():
        return True
    try:
        return has_peft_head(adapter_tensors(folder))
    except TensorError:
        return False


def joins_pairs(folder: Path) -> bool:
    """Returns whether an adapter's head is the sequence classifier that PEFT saved, which reads a pair as one text."""
    return not (folder / HEAD).is_file() and has_head(folder)


def check_head(
    folder: Path,
    adapter: TensorFile,
    config: dict[str, Any],
    base_kind: BaseKind | None,
    rows: int | None,
    base: BaseShapes | None,
) -> HeadShape | None:
    """Returns the shape of the head in a folder or among its `adapter`'s tensors; None if there is none and none is
    needed.

    `config` is the adapter's, `rows` the number of rows that the head must have; 0 means no head. Raises AdapterError
    and TensorError if the head is unsound, is missing under an encoder, or stands under a causal base."""
    own = (folder / HEAD).is_file()
    inside = any(map(is_part, adapter.tensors))
    if rows == 0 and base_kind == "encoder":
        if own or inside:
            raise AdapterError(
                "It has a head, and this ensemble classifies by its prompts: leave out the head or the prompts."
            )
        return None
    if own and inside:
        raise AdapterError(
            f"It has two heads, {HEAD} and the classifier that PEFT saved; leave one of them out."
        )
    if not own and not inside:
        if base_kind != "encoder":
            return None
        raise AdapterError(
            f"{HEAD} is missing; under a base that heads read each adapter has a head of its own, in this file or as "
            "PEFT saves it for sequence classifiers."
        )
    if base_kind == "causal":
        raise AdapterError(
            f"The head ({HEAD if own else 'the classifier that PEFT saved'}) is not for a base that scores labels as "
            'text; for heads over a causal base say "kind": "encoder" in bundle.json.'
        )
    shape = _check_own(folder, rows) if own else _check_classifier(adapter, config, base, rows)
    if shape is None:
        return None
    if base is not None and base.hidden is not None and shape.hidden != base.hidden:
        raise AdapterError(
            f"The head reads vectors of {shape.hidden} values, but the base gives {base.hidden}."
        )
    if (
        base is not None
        and pooling_of(base.config) == "last"
        and shape.pooling not in (None, "last")
    ):
        raise AdapterError(
            f"The head reads the pooling {shape.pooling!r}, and over a causal model only 'last' is served: the last "
            "token alone has seen the whole text."
        )
    if base is not None and towers_of(base.config) and shape.pooling is not None:
        raise AdapterError(
            f"The head reads the pooling {shape.pooling!r}, and a base of images and texts gives one vector of each: "
            "leave 'pooling' out."
        )
    return shape


def _check_own(folder: Path, rows: int | None) -> HeadShape:
    head = TensorFile(folder / HEAD)
    if set(head.tensors) not in (_LINEAR, _LINEAR | _HIDDEN):
        raise AdapterError(
            f"{HEAD} must hold 'weight' and 'bias', and before a hidden layer also 'hidden_weight' and 'hidden_bias', "
            f"not {named(sorted(head.tensors))}."
        )
    weight, bias = head.tensors["weight"].shape, head.tensors["bias"].shape
    _check_rows(HEAD, weight, bias, rows)
    normalize, pair, pooling = _metadata(head)
    width = 4 if pair else 1
    if weight[1] % width:
        raise AdapterError(
            f"A head with pair=towers reads 4 vectors; {weight[1]} is not a multiple of 4."
        )
    reads = weight[1] // width
    if "hidden_weight" in head.tensors:
        reads = _check_hidden(
            head.tensors["hidden_weight"].shape, head.tensors["hidden_bias"].shape, reads
        )
    for each in head.tensors:
        head.check_finite(each)
    return HeadShape(weight[0], reads, normalize, pair, pooling)


def _check_hidden(weight: tuple[int, ...], bias: tuple[int, ...], expected: int) -> int:
    """Returns the width of the vector that a hidden layer reads."""
    if len(weight) != 2 or bias != weight[:1] or weight[0] != expected:
        raise AdapterError(
            f"The hidden layer of the head must have a weight of [{expected}, width of the base] and a bias of "
            f"[{expected}], not {list(weight)} and {list(bias)}."
        )
    return weight[1]


def _metadata(head: TensorFile) -> tuple[bool, str | None, Pooling | None]:
    said = head.metadata
    unknown = sorted(set(said) - {*_METADATA, "format"})
    if unknown:
        raise AdapterError(
            f"{HEAD} has unknown metadata {named(unknown)}; known are {named(_METADATA)}."
        )
    normalize, pair, pooling = said.get("normalize", "false"), said.get("pair"), said.get("pooling")
    if normalize not in ("true", "false"):
        raise AdapterError(f"'normalize' in {HEAD} must be 'true' or 'false', not {normalize!r}.")
    if pair not in (None, "towers"):
        raise AdapterError(f"'pair' in {HEAD} must be 'towers', not {pair!r}.")
    if pooling not in (None, *get_args(Pooling)):
        raise AdapterError(
            f"'pooling' in {HEAD} must be one of {named(get_args(Pooling))}, not {pooling!r}."
        )
    activation = said.get("activation")
    if ("hidden_weight" in head.tensors) != (activation is not None):
        raise AdapterError(
            f"'activation' in {HEAD} belongs to a hidden layer: give both, or neither of them."
        )
    if activation is not None and activation not in ACTIVATIONS:
        raise AdapterError(
            f"'activation' in {HEAD} must be one of {named(list(ACTIVATIONS))}, not {activation!r}."
        )
    return normalize == "true", pair, cast(Pooling | None, pooling)


def _check_classifier(
    adapter: TensorFile, config: dict[str, Any], base: BaseShapes | None, rows: int | None
) -> HeadShape | None:
    if base is None and f"{STEM}score.weight" not in adapter.tensors:
        return None  # the base's family decides what the head is
    head = find_peft_head(adapter, config, base)
    assert head is not None, "the adapter has a part of a head"
    own = head.classifier
    weight = head.shape(f"{own.output}.weight") or ()
    bias = head.shape(f"{own.output}.bias") or weight[:1]
    _check_rows(f"{own.output!r} in the adapter", weight, bias, rows)
    for place in head.parts.values():
        place.file.check_finite(place.name)
    width = weight[1]
    if own.hidden is not None:
        _check_layer(head, own.hidden, [width, width if base is None else base.hidden or width])
        width = (head.shape(f"{own.hidden}.weight") or weight)[1]
    if own.norm is not None:
        _check_layer(head, own.norm, [weight[1]])
    return HeadShape(weight[0], width, normalize=False, pair=None, pooling=own.pooling)


def _check_layer(head: PeftHead, module: str, expected: list[int]) -> None:
    weight, bias = head.shape(f"{module}.weight"), head.shape(f"{module}.bias")
    if weight != tuple(expected) or bias not in (None, tuple(expected[:1])):
        raise AdapterError(
            f"The part {module!r} of the head must have a weight of {expected} and a bias of {expected[:1]}, not "
            f"{list(weight or ())} and {list(bias or ())}."
        )


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

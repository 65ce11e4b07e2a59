"""Checks the outputs, weights and right answers that a fusion is given."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from serve.fusion.errors import FusionError, OutputError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

SUM_TOLERANCE = 1e-3
"""How far a row's sum may be from 1. float16 rounding stays below it; scores and logits do not."""

TINY = float(np.finfo(np.float64).tiny)
"""Replaces a probability of 0 before a logarithm, so that the 0 of one member does not make a row undefined."""


def check_probabilities(
    probabilities: ArrayLike, members: Sequence[str], labels: int | None = None
) -> Floats:
    """Returns the members' probabilities [M, N, C] as float64, each row scaled to sum to 1.

    Raises OutputError, which names the member and the row, if the shape is wrong, a value is negative or not finite, or
    a row does not sum to 1."""
    rows = _check_labelled(probabilities, members, labels)
    sums = rows.sum(axis=2, keepdims=True)
    _refuse(np.abs(sums - 1) > SUM_TOLERANCE, members, "not probabilities: their sum is not 1")
    normalised: Floats = rows / sums
    return normalised


def check_independent(
    probabilities: ArrayLike, members: Sequence[str], labels: int | None = None
) -> Floats:
    """Returns the members' probabilities [M, N, C] of labels that do not exclude each other, as float64.

    Raises OutputError as `check_probabilities` does, but for values above 1 instead of for sums."""
    rows = _check_labelled(probabilities, members, labels)
    _refuse(rows > 1 + SUM_TOLERANCE, members, "not probabilities: one is above 1")
    return np.minimum(rows, 1.0)


def check_values(values: ArrayLike, members: Sequence[str]) -> Floats:
    """Returns the members' values [M, N] as float64. Raises OutputError if the shape is wrong or a value is not
    finite."""
    rows = _check_array(values, members, "values", ("members", "rows"))
    _refuse(~np.isfinite(rows), members, "not finite (NaN or infinite)", "value")
    return rows


def check_targets(targets: ArrayLike, rows: int, labels: int) -> Ints:
    """Returns the index of each row's true label [N]. Raises FusionError if there is none for each row."""
    array = np.asarray(targets)
    if array.shape != (rows,) or array.dtype.kind not in "iu":
        raise FusionError(f"Targets must be {rows} whole numbers, one a row.")
    _refuse_no_rows(rows)
    if array.min() < 0 or array.max() >= labels:
        raise FusionError(f"Targets must be label indices from 0 to {labels - 1}.")
    return array.astype(np.int64)


def check_target_sets(targets: ArrayLike, rows: int, labels: int) -> NDArray[np.bool_]:
    """Returns whether each label is true of each row [N, C]. Raises FusionError if the shape or a value is wrong."""
    array = np.asarray(targets)
    if array.shape != (rows, labels) or not np.isin(array, (0, 1)).all():
        raise FusionError(f"Targets must be {rows} rows of {labels} zeros and ones, one a label.")
    _refuse_no_rows(rows)
    return array.astype(np.bool_)


def check_target_values(targets: ArrayLike, rows: int) -> Floats:
    """Returns the true value of each row [N]. Raises FusionError if the shape is wrong or a value is not finite."""
    array = np.asarray(targets)
    if array.shape != (rows,) or array.dtype.kind not in "fiu" or not np.isfinite(array).all():
        raise FusionError(f"Targets must be {rows} finite numbers, one a row.")
    _refuse_no_rows(rows)
    return array.astype(np.float64)


def check_weights(weights: Mapping[str, float], members: Sequence[str]) -> Floats:
    """Returns a weight for each member [M], in the members' order. They sum to 1.

    Raises FusionError unless each member has exactly one finite weight of at least 0 and one of them is positive."""
    check_members(weights, members)
    values = np.array([float(weights[name]) for name in members], dtype=np.float64)
    if not np.isfinite(values).all() or (values < 0).any():
        raise FusionError("Weights must be finite numbers of at least 0.")
    largest = values.max()
    if largest == 0:
        raise FusionError("All weights are 0; at least one must be positive.")
    values /= largest
    normalised: Floats = values / values.sum()
    return normalised


def check_members(weights: Mapping[str, float], members: Sequence[str]) -> None:
    """Raises FusionError unless `weights` gives each member exactly one number."""
    unknown = [name for name in weights if name not in members]
    if unknown:
        raise FusionError(f"There is no member {unknown[0]!r}; members are {', '.join(members)}.")
    missing = [name for name in members if name not in weights]
    if missing:
        raise FusionError(
            f"The member {missing[0]!r} has no weight; give one for each member (0 leaves it out)."
        )
    for name, weight in weights.items():
        if isinstance(weight, bool) or not isinstance(weight, (int, float, np.number)):
            raise FusionError(f"The weight of {name!r} must be a number, not {weight!r}.")


def _check_labelled(probabilities: ArrayLike, members: Sequence[str], labels: int | None) -> Floats:
    """Returns probabilities [M, N, C] that are finite and not negative."""
    rows = _check_array(probabilities, members, "probabilities", ("members", "rows", "labels"))
    columns = rows.shape[2]
    if columns == 0:
        raise OutputError("There are probabilities of no label.")
    if labels is not None and columns != labels:
        raise OutputError(f"There are probabilities of {columns} labels, but {labels} labels.")
    _refuse(~np.isfinite(rows), members, "not finite (NaN or infinite)")
    _refuse(rows < 0, members, "negative")
    return rows


def _check_array(
    given: ArrayLike, members: Sequence[str], what: str, axes: tuple[str, ...]
) -> Floats:
    array = np.asarray(given)
    if array.dtype.kind not in "fiu":
        raise OutputError(f"{what.capitalize()} must be numbers, not {array.dtype}.")
    if array.ndim != len(axes):
        raise OutputError(
            f"{what.capitalize()} must have the shape [{', '.join(axes)}], not {list(array.shape)}."
        )
    if len(array) != len(members):
        raise OutputError(f"There are {what} of {len(array)} members, but {len(members)} members.")
    return array.astype(np.float64)


def _refuse_no_rows(rows: int) -> None:
    if rows == 0:
        raise FusionError("Fitting needs at least one row.")


def _refuse(
    wrong: NDArray[np.bool_], members: Sequence[str], what: str, of: str = "probabilities"
) -> None:
    if wrong.any():
        member, row = (int(index) for index in np.argwhere(wrong)[0][:2])
        verb = "is" if of == "value" else "are"
        raise OutputError(f"The {of} of the member {members[member]!r} in row {row} {verb} {what}.")

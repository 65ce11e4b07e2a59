"""Chooses the method, the weights and the plausibility that fuse an ensemble's tokens. Needs no torch."""

import math
from collections.abc import Mapping
from typing import get_args

from serve.fusion.errors import FusionError
from serve.fusion.members import check_members, check_weights
from serve.manifest import ANSWER_METHODS, LARGEST_FACTOR, AnswerMethod, Ensemble, TokenMethod


def token_method(ensemble: Ensemble, method: str | None = None) -> TokenMethod | None:
    """Returns the request's method, or else the manifest's; None for one that chooses among whole answers.

    Raises FusionError for a method that is not served for generation."""
    wanted = method or ensemble.fusion.method
    known: tuple[TokenMethod, ...] = get_args(TokenMethod)
    for each in known:
        if wanted == each:
            return each
    if wanted in ANSWER_METHODS:
        return None
    raise FusionError(
        f"The method {wanted!r} is not served for generation; {', '.join([*known, *ANSWER_METHODS])} are."
    )


def token_weights(
    ensemble: Ensemble, method: TokenMethod, weights: Mapping[str, float] | None = None
) -> tuple[float, ...]:
    """Returns one weight for each member, in the manifest's order, from the request's weights or else the manifest's.

    `average`: equal weights, 1/n. `weighted_average`: scaled to sum to 1. `product`: as given, also negative. Raises
    FusionError if the method takes no weights or the weights are unsound."""
    names = [member.name for member in ensemble.members]
    if method == "average":
        if weights is not None:
            raise FusionError(
                "'weights' is not for average; choose weighted_average, product, vote or mbr."
            )
        return (1 / len(names),) * len(names)
    own = dict(zip(names, ensemble.weights(), strict=True))
    given = own if weights is None else weights
    if method == "weighted_average":
        return tuple(float(weight) for weight in check_weights(given, names))
    check_members(given, names)
    values = tuple(float(given[name]) for name in names)
    if not all(math.isfinite(value) and abs(value) <= LARGEST_FACTOR for value in values):
        raise FusionError(
            f"Weights of product must lie between -{LARGEST_FACTOR:g} and {LARGEST_FACTOR:g}."
        )
    if not any(values):
        raise FusionError("All weights are 0; at least one must not be.")
    return values


def token_plausibility(
    ensemble: Ensemble, method: TokenMethod | AnswerMethod, plausibility: float | None = None
) -> float:
    """Returns the request's plausibility (0..1), or else the manifest's; 0 for a method without one.

    Raises FusionError if the request gives one to a method that has none."""
    if method != "product":
        if plausibility:
            raise FusionError(f"'plausibility' is for product, not for {method}.")
        return 0.0
    return ensemble.fusion.plausibility if plausibility is None else plausibility

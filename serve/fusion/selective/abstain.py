"""Abstaining: selective classification with a guaranteed risk (SGR; Geifman and El-Yaniv 2017)."""

import math
from typing import Annotated, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from serve.fusion.fused import Fused
from serve.fusion.members import Floats
from serve.fusion.selective.bounds import upper_bounds
from serve.manifest import Contract, Number, Share, Whole

STEPS = 127
"""Into how many parts the validation rows are cut by their score. The search among them takes 7 tests."""
ALWAYS = -1.0
"""A threshold that every answer reaches."""
NEVER = 2.0
"""A threshold that no answer reaches."""


class AbstainFit(Contract):
    """Errors on the validation rows by how sure the answers were."""

    early_exit: Share | None = None
    """The risk of early exit that the answers were given with; None: all members were asked."""
    thresholds: Annotated[list[Number], Field(min_length=1)]
    """The strictest first; the last one takes every answer."""
    covered: list[Whole]
    """For each threshold, the rows whose answers reach it."""
    errors: list[Whole]
    """How many of these answers are wrong."""

    @model_validator(mode="after")
    def _check_lengths(self) -> Self:
        if not len(self.thresholds) == len(self.covered) == len(self.errors):
            raise ValueError("'thresholds', 'covered' and 'errors' must have the same length")
        return self

    def threshold(self, risk: float, confidence: float) -> float:
        """Returns the lowest threshold found for which, with `confidence`, at most the share `risk` of the answers that
        reach it is wrong; one that no answer reaches if there is none.

        A binary search; its tests share 1 - `confidence` among them."""
        tests = max(1, math.ceil(math.log2(len(self.thresholds) + 1)))
        each = 1 - (1 - confidence) / tests
        strictest, loosest, found = 0, len(self.thresholds) - 1, NEVER
        while strictest <= loosest:
            place = (strictest + loosest + 1) // 2
            if upper_bounds(self.errors[place], self.covered[place], each) <= risk:
                found, strictest = self.thresholds[place], place + 1
            else:
                loosest = place - 1
        return found


def fit_abstain(
    sure: Floats, wrong: NDArray[np.bool_], early_exit: float | None = None
) -> AbstainFit:
    """Counts errors by score: `sure` [N] says how sure each answer is, `wrong` [N] whether it is wrong."""
    order = np.argsort(-sure, kind="stable")
    sorted_, errors = sure[order], np.cumsum(wrong[order])
    rows = len(sure)
    last = np.append(sorted_[:-1] > sorted_[1:], True)  # equal scores are on the same side
    ends = np.flatnonzero(last)
    wanted = np.ceil(rows * np.arange(1, STEPS + 1) / STEPS) - 1
    places = np.unique(ends[np.minimum(np.searchsorted(ends, wanted), len(ends) - 1)])
    below = sorted_[np.minimum(places + 1, rows - 1)]
    thresholds = np.where(places == rows - 1, ALWAYS, (sorted_[places] + below) / 2)
    return AbstainFit(
        early_exit=early_exit,
        thresholds=[float(each) for each in thresholds],
        covered=(places + 1).tolist(),
        errors=errors[places].tolist(),
    )


def certainty(answers: Fused) -> Floats:
    """Returns how sure each answer is [N], 0..1: the probability of the most probable label."""
    return np.asarray(answers.probabilities.max(axis=1))

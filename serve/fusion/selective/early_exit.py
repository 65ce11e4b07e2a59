"""Early exit: members are asked in order of strength, and an input's answer stands once they are sure enough of it.

An early answer is the manifest's own method over the members asked so far. It stands if their mean probability of it
reaches a threshold. The threshold is chosen on validation rows, so that few early answers differ from what all members
would say.
"""

from typing import Annotated, Self

import numpy as np
from pydantic import Field, model_validator

from serve.fusion.members import Floats, Ints
from serve.fusion.selective.bounds import upper_bounds
from serve.manifest import Contract, Name, Number, Share, Whole

CONFIDENCE = 0.95
"""How sure the bound on the risk is."""
THRESHOLDS: Floats = np.append(1 / (1 + np.exp(-np.linspace(9.21, -4.6, 70))), 0.0)
"""The thresholds that are tried, the strictest first. They do not depend on the rows: only then do the bounds hold for
the threshold that is taken."""
NEVER = 2.0
"""A threshold that no probability reaches."""


class ExitFit(Contract):
    """What each threshold cost and risked on the validation rows."""

    order: Annotated[list[Name], Field(min_length=1)]
    """The members that are asked, the strongest first. A member without a weight is not among them."""
    rows: Whole
    thresholds: list[Number]
    """The strictest first."""
    bounds: list[Share]
    """For each threshold, the bound on the share of answers that differ from those of all members. It never falls."""
    asked: list[Number]
    """For each threshold, the mean number of members asked."""

    @model_validator(mode="after")
    def _check_lengths(self) -> Self:
        if not len(self.thresholds) == len(self.bounds) == len(self.asked):
            raise ValueError("'thresholds', 'bounds' and 'asked' must have the same length")
        return self

    def threshold(self, risk: float) -> float:
        """Returns the threshold that asks the fewest members while its bound is at most `risk`; one that is never
        reached if there is none.

        The thresholds are tested one after another, from the strictest to the first that fails. So the bound holds for
        the one that is taken (fixed sequence testing; Angelopoulos et al. 2021, "Learn then Test")."""
        passed = int(np.searchsorted(self.bounds, risk, side="right"))
        return self.thresholds[passed - 1] if passed else NEVER


def sureness(members: Floats, weights: Floats, winners: Ints) -> Floats:
    """Returns how probable the answers `winners` [N] are, by the mean [N] of members [M, N, C] under weights [M]."""
    own = members[:, np.arange(len(winners)), winners]
    return np.asarray(weights @ own)


def fit_exit(order: list[str], sure: Floats, winners: Ints) -> ExitFit:
    """Fits the thresholds.

    `sure` and `winners` [K, N]: how sure the first 1, 2, ... K members of `order` are, and what they answer; the last
    row is the answer of all."""
    last, rows = len(sure) - 1, sure.shape[1]
    differs = winners != winners[-1]
    bounds, asked = [], []
    for threshold in THRESHOLDS:
        stops = exits(sure, float(threshold))
        wrong = int(differs[stops, np.arange(rows)].sum()) if last else 0
        bounds.append(float(upper_bounds(wrong, rows, CONFIDENCE)))
        asked.append(round(float(stops.mean()) + 1, 4))
    return ExitFit(
        order=order,
        rows=rows,
        thresholds=[round(float(each), 6) for each in THRESHOLDS],
        bounds=[round(float(each), 6) for each in np.maximum.accumulate(bounds)],
        asked=asked,
    )


def exits(sure: Floats, threshold: float) -> Ints:
    """Returns for each row [N] the index of the first of K stages that is sure enough, from `sure` [K, N]; K - 1 if
    none is."""
    enough = sure >= threshold
    enough[-1] = True
    return np.asarray(enough.argmax(axis=0))

"""A learned ranker of whole answers: a linear regression of how good a candidate is, among those to the same input.

Only differences between the candidates to one input count, so it is fitted to features and qualities less their means
over these candidates (a regression with fixed effects). The quality is the candidate's chrF to the right answers. Each
member's own candidates have a bonus, which is learned too.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Self

import numpy as np
from numpy.typing import ArrayLike
from pydantic import model_validator

from serve.fusion.errors import FusionError, StaleFusionError
from serve.fusion.members import Floats
from serve.fusion.ranking.candidates import JUDGES, Candidates
from serve.fusion.stack.stacker import FittedFile, FittedOn, digests_of
from serve.manifest import Ensemble, Number, Task

PENALTIES = tuple(float(each) for each in np.logspace(-1, 4, 11))
"""The strengths of the L2 penalty that are tried, scikit-learn's alpha, over standardised features."""
FOLDS = 5
"""Parts of the inputs among which the penalty is chosen."""


class RankerParameters(FittedOn):
    """The coefficients of a fitted ranker, as JSON."""

    model: Literal["linear_regression"] = "linear_regression"
    task: Task = "generation"
    coefficients: list[Number]
    """[F] of the features that `Candidates.features` has."""
    bonus: list[Number]
    """[M] of the candidates that each member wrote."""

    @model_validator(mode="after")
    def _check_shapes(self) -> Self:
        if self.task != "generation" or self.labels is not None:
            raise ValueError("a ranker of answers is for generation, and has no labels")
        features = min(len(self.members), JUDGES) + 2
        if len(self.coefficients) != features or len(self.bonus) != len(self.members):
            raise ValueError(
                f"'coefficients' must be {features} numbers, and 'bonus' {len(self.members)}, one a member"
            )
        return self


class Ranker(FittedFile):
    noun = "stacker"
    parameters: RankerParameters

    def __init__(self, parameters: RankerParameters) -> None:
        self.parameters = parameters
        self._coefficients = np.array(parameters.coefficients, dtype=np.float64)
        self._bonus = np.array(parameters.bonus, dtype=np.float64)

    @classmethod
    def fit(
        cls, candidates: Sequence[Candidates], qualities: ArrayLike, ensemble: Ensemble
    ) -> Self:
        """Fits a ranker to the members' candidates for N held-out inputs, and how good each is [N, M], higher is
        better. Raises FusionError for unsound input."""
        members = [member.name for member in ensemble.members]
        good = np.asarray(qualities, dtype=np.float64)
        if not candidates or good.shape != (len(candidates), len(members)):
            raise FusionError("A ranker needs the quality of each member's answer to each input.")
        design = np.stack([_columns(each) for each in candidates])
        if design.shape[1] != len(members) or not (
            np.isfinite(design).all() and np.isfinite(good).all()
        ):
            raise FusionError(
                "A ranker needs one candidate of each member, and numbers that are finite."
            )
        weights = _fitted(design, good)
        features = design.shape[2] - len(members)
        rounded = [float(f"{each:.7g}") for each in weights]
        return cls(
            RankerParameters(
                members=members,
                digests=digests_of(ensemble),
                coefficients=rounded[:features],
                bonus=rounded[features:],
            )
        )

    @classmethod
    def from_manifest(
        cls, ensemble: Ensemble, file: Path | None, *, allow_stale: bool = False
    ) -> Self | None:
        """Reads the ranker of a manifest of generation from the file of its parameters; None if it names none.

        It may have been fitted on other adapters than the ensemble's. Then, unless `allow_stale`, this raises
        StaleFusionError if the manifest's method needs it, and else returns None, so that requests cannot choose it.
        Raises FusionError for a file that is missing, or that is not for this ensemble."""
        if ensemble.fusion.model is None:
            return None
        if file is None:
            raise FusionError(
                f"{ensemble.id} names fitted parameters, but their file was not given."
            )
        ranker = cls.read(file)
        changed = ranker.changed_members(ensemble)
        if not changed or allow_stale:
            return ranker
        if ensemble.fusion.method != "stack":
            return None
        raise StaleFusionError(
            f"The stacker of {ensemble.id} was fitted on other adapters than those of {', '.join(changed)}: fit it "
            "again, choose another method, or allow it with allow_stale_fusion."
        )

    def is_stale(self, ensemble: Ensemble) -> bool:
        """Returns whether it was fitted on other adapters than the ensemble's."""
        return bool(self.changed_members(ensemble))

    def scores(self, candidates: Candidates) -> Floats:
        """Returns how good the candidates are [M]; only differences mean something. A candidate that a member finds
        impossible, or to which it gives no number, is worse than all others."""
        with np.errstate(over="ignore", invalid="ignore"):
            scores = candidates.features() @ self._coefficients + self._bonus
        return np.where(np.isfinite(scores), scores, -np.inf)

    def content(self) -> str:
        return self.parameters.model_dump_json(exclude_none=True) + "\n"

    @classmethod
    def parse(cls, text: str) -> Self:
        return cls(RankerParameters.model_validate_json(text))


def _columns(candidates: Candidates) -> Floats:
    """Returns the features of the candidates, and which member wrote each, [M, F + M]."""
    return np.concatenate([candidates.features(), np.eye(len(candidates.texts))], axis=1)


def _fitted(design: Floats, qualities: Floats) -> Floats:
    """Returns the coefficients [K] of a ridge regression on the columns [N, M, K]. The penalty is the one with the
    smallest error on inputs that were left out; with few inputs, the largest."""
    from sklearn.linear_model import Ridge, RidgeCV
    from sklearn.model_selection import GroupKFold

    inputs, members, width = design.shape
    columns = (design - design.mean(axis=1, keepdims=True)).reshape(-1, width)
    target = (qualities - qualities.mean(axis=1, keepdims=True)).reshape(-1)
    scale = columns.std(axis=0)
    scale[scale < 1e-9] = 1.0
    standard = columns / scale
    if inputs < 2 * FOLDS:
        model = Ridge(alpha=PENALTIES[-1], fit_intercept=False)
    else:
        groups = np.repeat(np.arange(inputs), members)
        parts = list(GroupKFold(FOLDS).split(standard, target, groups))
        model = RidgeCV(PENALTIES, fit_intercept=False, cv=parts)
    weights: Floats = model.fit(standard, target).coef_ / scale
    return weights

"""The learned stacker: logistic regressions over what the members say about each label.

One regression a label. Its features are the members' log-odds for that very label, at most 16 of
them, so that two labels and a thousand run the same code and cost the same a label. The regressions
are fitted together: each label's coefficients are those that all labels share plus a deviation of
its own, and the penalty is on the deviations mostly. A label with few validation rows so keeps to
the shared ones (partial pooling; Gelman and Hill 2007), a label with many finds which member knows
it best. Label probabilities are normalised over the labels, as scikit-learn's OneVsRestClassifier
does it. With two labels and a weak penalty this is scikit-learn's StackingClassifier over decision
functions.
"""

import os
import tempfile
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import Field, ValidationError, model_validator

from serve.fusion.errors import FusionError
from serve.fusion.members import Floats, Ints, check_probabilities, check_targets
from serve.fusion.pooling import softmax
from serve.manifest import Contract, Digest, Ensemble, Member, Number, explain

MAX_FEATURES = 16
MAX_BYTES = 1_000_000
CLIP = 1e-5
"""Probabilities nearer to 0 or 1 than this count as this: beyond it, float32 rounding would move
the log-odds."""
PENALTY = 1.0
"""scikit-learn's C: the inverse of the strength of the L2 penalty."""
DEVIATION_SCALE = 0.5
"""A label's own coefficients are penalised 1/scale^2 times as much as the shared ones."""


class StackParameters(Contract):
    """A fitted stacker as JSON: plain coefficients, and what they were fitted on."""

    format: Literal[1] = 1
    model: Literal["logistic_regression"] = "logistic_regression"
    labels: Annotated[list[str], Field(min_length=2)]
    members: Annotated[list[str], Field(min_length=1)]
    digests: list[list[Digest]]
    """The digests of each member's adapters."""
    coefficients: list[list[Number]]
    """[C, F]"""
    intercept: list[Number]
    """[C]"""

    @model_validator(mode="after")
    def _check_shapes(self) -> "StackParameters":
        features = min(len(self.members), MAX_FEATURES)
        rows = {len(row) for row in self.coefficients}
        if len(self.coefficients) != len(self.labels) or rows != {features}:
            raise ValueError(
                f"'coefficients' must be {len(self.labels)} rows (labels) of {features} numbers"
            )
        if len(self.intercept) != len(self.labels):
            raise ValueError(f"'intercept' must be {len(self.labels)} numbers, one a label")
        if len(self.digests) != len(self.members):
            raise ValueError(f"'digests' must be {len(self.members)} lists, one a member")
        return self


class Stack:
    """A fitted stacker."""

    def __init__(self, parameters: StackParameters) -> None:
        self.parameters = parameters
        self._coefficients = np.array(parameters.coefficients, dtype=np.float64)
        self._intercept = np.array(parameters.intercept, dtype=np.float64)

    @classmethod
    def fit(
        cls,
        probabilities: ArrayLike,
        targets: ArrayLike,
        ensemble: Ensemble,
        *,
        penalty: float = PENALTY,
    ) -> "Stack":
        """Fit on held-out or out-of-fold predictions [M, N, C] of the ensemble's members, and true
        label indices [N].

        `penalty` is scikit-learn's C. Raises FusionError for unsound input, an ensemble without
        labels included."""
        names = [member.name for member in ensemble.members]
        if not ensemble.labels:
            raise FusionError(f"{ensemble.id} has no labels that a stacker could choose from.")
        members = check_probabilities(probabilities, names, len(ensemble.labels))
        truth = check_targets(targets, *members.shape[1:])
        coefficients, intercept = _fit(features(members), truth, penalty)
        parameters = StackParameters(
            labels=ensemble.labels,
            members=names,
            digests=_digests(ensemble.members),
            coefficients=coefficients.tolist(),
            intercept=intercept.tolist(),
        )
        return cls(parameters)

    @classmethod
    def read(cls, file: Path) -> "Stack":
        """Raises FusionError for a file that is not such a stacker."""
        try:
            if file.stat().st_size > MAX_BYTES:
                raise FusionError(
                    f"{file.name} is larger than {MAX_BYTES:,} bytes, the most a stacker may have."
                )
            return cls(StackParameters.model_validate_json(file.read_bytes()))
        except OSError as error:
            raise FusionError(f"{file.name} cannot be read: {error.strerror}.") from error
        except ValidationError as error:
            raise FusionError(f"{file.name} is not a fitted stacker: {explain(error)}.") from error

    def write(self, file: Path) -> None:
        """Write the parameters as JSON, whole or not at all. Raises FusionError above 1 MB."""
        content = self.parameters.model_dump_json().encode() + b"\n"
        if len(content) > MAX_BYTES:
            raise FusionError(
                f"A stacker of {len(self.parameters.labels)} labels would have {len(content):,} "
                "bytes; "
                f"at most {MAX_BYTES:,} are allowed, so choose another method."
            )
        file.parent.mkdir(parents=True, exist_ok=True)
        handle, draft = tempfile.mkstemp(dir=file.parent, prefix=".new-")
        with os.fdopen(handle, "wb") as out:
            out.write(content)
        os.chmod(draft, 0o644)
        os.replace(draft, file)

    def predict(self, probabilities: Floats) -> Floats:
        """[N, C] from checked [M, N, C]."""
        scores = np.einsum("ncf,cf->nc", features(probabilities), self._coefficients)
        return softmax(-np.logaddexp(0.0, -(scores + self._intercept)))

    def changed_members(self, ensemble: Ensemble) -> list[str]:
        """Members whose adapters are not those that the stacker was fitted on.

        Raises FusionError where labels or members differ, so that the parameters could not be used
        at all."""
        fitted = self.parameters
        names = [member.name for member in ensemble.members]
        if fitted.labels != ensemble.labels:
            raise FusionError(
                f"The stacker of {ensemble.id} was fitted on other labels or another order of them."
            )
        if fitted.members != names:
            raise FusionError(
                f"The stacker of {ensemble.id} was fitted on the members "
                f"{', '.join(fitted.members)}, "
                f"not on {', '.join(names)}."
            )
        pairs = zip(names, fitted.digests, _digests(ensemble.members), strict=True)
        return [name for name, then, now in pairs if then != now]


def features(probabilities: Floats) -> Floats:
    """[N, C, F] log-odds of each label from [M, N, C], F = min(M, 16).

    Above 16 members, neighbours in the manifest's order are averaged into 16 groups."""
    clipped = np.clip(probabilities, CLIP, 1 - CLIP)
    odds = np.log(clipped) - np.log1p(-clipped)
    if len(odds) > MAX_FEATURES:
        odds = np.stack([group.mean(axis=0) for group in np.array_split(odds, MAX_FEATURES)])
    return np.moveaxis(odds, 0, -1)


def _fit(inputs: Floats, truth: Ints, penalty: float) -> tuple[Floats, Floats]:
    """Coefficients [C, F] and intercepts [C], from features [N, C, F] and label indices [N]: one
    regression over all (row, label) pairs, whose answer is whether the label is the row's."""
    from scipy.sparse import coo_array, hstack
    from sklearn.linear_model import LogisticRegression

    rows, labels, width = inputs.shape
    shared = inputs.reshape(rows * labels, width)
    own = np.concatenate([shared, np.ones((rows * labels, 1))], axis=1) * DEVIATION_SCALE
    pair = np.repeat(np.arange(rows * labels), width + 1)
    block = np.tile(np.repeat(np.arange(labels) * (width + 1), width + 1), rows)
    column = block + np.tile(np.arange(width + 1), rows * labels)
    size = (rows * labels, labels * (width + 1))
    design = hstack(
        [coo_array(shared), coo_array((own.ravel(), (pair, column)), shape=size)]
    ).tocsr()
    answer = (np.arange(labels)[None, :] == truth[:, None]).ravel()
    model = LogisticRegression(C=penalty, max_iter=1000).fit(design, answer)
    deviation = model.coef_[0, width:].reshape(labels, width + 1) * DEVIATION_SCALE
    coefficients: NDArray[np.float64] = model.coef_[0, :width] + deviation[:, :width]
    return coefficients, model.intercept_[0] + deviation[:, width]


def _digests(members: list[Member]) -> list[list[str]]:
    return [[ref.digest for ref in member.adapters] for member in members]

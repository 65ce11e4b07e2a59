"""Stacks by regression, and stores plain coefficients.

Labels: one logistic regression for each label, over the members' log-odds. All are fitted together. A label's
coefficients are shared ones plus deviations of its own, and the penalty falls mostly on the deviations. So a label with
few validation rows keeps close to the shared coefficients (partial pooling; Gelman and Hill 2007), and a label with
many learns which members know it best. With two labels and a weak penalty this is scikit-learn's StackingClassifier
over decision functions.

Values: one linear regression over the members' values, with coefficients of at least 0 (Breiman 1996, "Stacked
regressions").
"""

from typing import Literal, Self

import numpy as np
from pydantic import model_validator

from serve.fusion.errors import FusionError
from serve.fusion.members import Floats
from serve.fusion.stack.stacker import MAX_FEATURES, FittedOn, Stack, grouped
from serve.manifest import Number, StackModel, Task

PENALTY = 1.0
"""scikit-learn's C: the inverse of the strength of the L2 penalty."""
DEVIATION_SCALE = 0.1
"""The penalty on a label's own coefficients is 1/scale^2 times that on the shared ones. A larger scale fits 500 rows of
77 labels too closely; a smaller one does not learn which member alone knows a label."""


class LinearParameters(FittedOn):
    """The coefficients of a fitted regression, as JSON."""

    model: Literal["logistic_regression", "linear_regression"] = "logistic_regression"
    coefficients: list[list[Number]]
    """[C, F]"""
    intercept: list[Number]
    """[C]"""

    @model_validator(mode="after")
    def _check_shapes(self) -> Self:
        features = min(len(self.members), MAX_FEATURES)
        rows = {len(row) for row in self.coefficients}
        if len(self.coefficients) != self.columns or rows != {features}:
            raise ValueError(
                f"'coefficients' must be {self.columns} rows (labels) of {features} numbers"
            )
        if len(self.intercept) != self.columns:
            raise ValueError(f"'intercept' must be {self.columns} numbers, one a label")
        return self


class LinearStack(Stack):
    parameters: LinearParameters

    def __init__(self, parameters: LinearParameters) -> None:
        self.parameters = parameters
        self._coefficients = np.array(parameters.coefficients, dtype=np.float64)
        self._intercept = np.array(parameters.intercept, dtype=np.float64)

    @classmethod
    def model_for(cls, task: Task) -> StackModel:
        return "linear_regression" if task == "regression" else "logistic_regression"

    @classmethod
    def fit_evidence(
        cls,
        evidence: Floats,
        indicators: Floats,
        fitted_on: FittedOn,
        *,
        penalty: float = PENALTY,
    ) -> Self:
        """Fits the regressions. `penalty` is scikit-learn's C; it counts for labels only."""
        features = _features(evidence)
        if fitted_on.task == "regression":
            coefficients, intercept = _least_squares(features, indicators)
        else:
            coefficients, intercept = _logistic(features, indicators, penalty)
        return cls(
            LinearParameters(
                **fitted_on.model_dump(),
                coefficients=coefficients.tolist(),
                intercept=intercept.tolist(),
            )
        )

    def scores(self, evidence: Floats) -> Floats:
        products: Floats = np.einsum("ncf,cf->nc", _features(evidence), self._coefficients)
        return products + self._intercept

    def content(self) -> str:
        return self.parameters.model_dump_json(exclude_none=True) + "\n"

    @classmethod
    def parse(cls, text: str) -> Self:
        return cls(LinearParameters.model_validate_json(text))


def _features(evidence: Floats) -> Floats:
    """Returns features [N, C, F] from evidence [M, N, C], with F = min(M, 16)."""
    return np.moveaxis(grouped(evidence, MAX_FEATURES), 0, -1)


def _least_squares(features: Floats, values: Floats) -> tuple[Floats, Floats]:
    """Returns coefficients [1, F] and the intercept [1] from features [N, 1, F] and values [N, 1]."""
    from sklearn.linear_model import LinearRegression

    model = LinearRegression(positive=True).fit(features[:, 0], values[:, 0])
    return model.coef_[np.newaxis], np.array([model.intercept_])


def _logistic(features: Floats, indicators: Floats, penalty: float) -> tuple[Floats, Floats]:
    """Returns coefficients [C, F] and intercepts [C] from features [N, C, F] and indicators [N, C] of 0 or 1.

    Fits one regression over all pairs of row and label; its answer is whether the label is the row's. Raises
    FusionError if all indicators are equal."""
    from scipy.sparse import coo_array, hstack
    from sklearn.linear_model import LogisticRegression

    if len(np.unique(indicators)) < 2:
        raise FusionError(
            "A stacker needs rows that have a label and rows that lack one; these all agree."
        )
    rows, labels, width = features.shape
    shared = features.reshape(rows * labels, width)
    own = np.concatenate([shared, np.ones((rows * labels, 1))], axis=1) * DEVIATION_SCALE
    pair = np.repeat(np.arange(rows * labels), width + 1)
    block = np.tile(np.repeat(np.arange(labels) * (width + 1), width + 1), rows)
    column = block + np.tile(np.arange(width + 1), rows * labels)
    size = (rows * labels, labels * (width + 1))
    design = hstack(
        [coo_array(shared), coo_array((own.ravel(), (pair, column)), shape=size)]
    ).tocsr()
    model = LogisticRegression(C=penalty, max_iter=1000).fit(design, indicators.ravel())
    deviation = model.coef_[0, width:].reshape(labels, width + 1) * DEVIATION_SCALE
    coefficients: Floats = model.coef_[0, :width] + deviation[:, :width]
    return coefficients, model.intercept_[0] + deviation[:, width]

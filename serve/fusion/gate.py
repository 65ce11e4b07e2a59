"""Weights that depend on the input: a gate over the base's pooled vector (mixture of experts; Jacobs et al. 1991).

The gate is a softmax over a linear function of the vector that the base without adapters gives of a text. It is fitted
on validation rows, so that the mixture of the members' probabilities makes the right labels most probable. Where
members know different things, it can say which of them to ask.
"""

from typing import Literal, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import model_validator

from serve.fusion.errors import FusionError, OutputError
from serve.fusion.labels.classification import ClassificationRules
from serve.fusion.labels.pooling import softmax
from serve.fusion.members import TINY, Floats
from serve.fusion.stack.stacker import FittedFile, FittedOn, digests_of
from serve.manifest import Ensemble, Number

PENALTIES = (0.003, 0.03, 0.3)
"""The inverse strengths of the L2 penalty that are tried, scikit-learn's C."""
FOLDS = 3
"""Parts of the rows among which the penalty is chosen."""
_LIMITS = {"maxiter": 200}
COMPONENTS = 64
"""The most principal components of the vectors that are read. More would make a refit slow, and say little more."""


class GateParameters(FittedOn):
    """The coefficients of a fitted gate, as JSON."""

    model: Literal["gate"] = "gate"
    coefficients: list[list[Number]]
    """[M, H] for H values of the base's vector."""
    intercept: list[Number]
    """[M]"""

    @model_validator(mode="after")
    def _check_shapes(self) -> Self:
        members = len(self.members)
        widths = {len(row) for row in self.coefficients}
        if len(self.coefficients) != members or len(widths) != 1 or len(self.intercept) != members:
            raise ValueError(
                f"'coefficients' and 'intercept' must have {members} rows, one a member"
            )
        return self


class Gate(FittedFile):
    noun = "gate"
    parameters: GateParameters

    def __init__(self, parameters: GateParameters) -> None:
        self.parameters = parameters
        self._coefficients = np.array(parameters.coefficients, dtype=np.float64)
        self._intercept = np.array(parameters.intercept, dtype=np.float64)

    @classmethod
    def fit(
        cls, outputs: ArrayLike, targets: ArrayLike, vectors: ArrayLike, ensemble: Ensemble
    ) -> Self:
        """Fits a gate to the members' held-out probabilities [M, N, C], the label indices [N] and the base's vectors
        [N, H]. Raises FusionError for unsound input."""
        names = [member.name for member in ensemble.members]
        rules = ClassificationRules(ensemble.labels)
        members = rules.check(outputs, names)
        truth = rules.check_targets(targets, members)
        read = _checked(vectors, len(truth))
        right = members[:, np.arange(len(truth)), truth].T
        coefficients, intercept = _fitted(read, np.maximum(right, TINY))
        return cls(
            GateParameters(
                task=ensemble.task,
                labels=ensemble.labels,
                members=names,
                digests=digests_of(ensemble),
                coefficients=_rounded(coefficients),
                intercept=_rounded(intercept[None])[0],
            )
        )

    def weights(self, vectors: ArrayLike, top_k: int | None = None) -> Floats:
        """Returns the members' weights [M, N] from the base's vectors [N, H]; they sum to 1 for each input.

        With `top_k`, the members beyond the k with the largest weights have none. Raises OutputError for vectors of
        another size, or that are not finite."""
        read = _checked(vectors, None)
        if read.shape[1] != self._coefficients.shape[1]:
            raise OutputError(
                f"The gate reads vectors of {self._coefficients.shape[1]} values, and the base's have {read.shape[1]}."
            )
        weights = softmax(read @ self._coefficients.T + self._intercept)
        if top_k is not None and top_k < weights.shape[1]:
            order = np.argsort(-weights, axis=1, kind="stable")
            np.put_along_axis(weights, order[:, top_k:], 0.0, axis=1)
            weights /= weights.sum(axis=1, keepdims=True)
        return np.ascontiguousarray(weights.T)

    def content(self) -> str:
        return self.parameters.model_dump_json(exclude_none=True) + "\n"

    @classmethod
    def parse(cls, text: str) -> Self:
        return cls(GateParameters.model_validate_json(text))


def _checked(vectors: ArrayLike, rows: int | None) -> Floats:
    read = np.asarray(vectors, dtype=np.float64)
    if read.ndim != 2 or rows not in (None, len(read)):
        raise FusionError(f"A gate needs a vector of the base for each of {rows} rows.")
    if not np.isfinite(read).all():
        raise OutputError("A vector of the base is not finite (NaN or infinite).")
    return read


def _rounded(numbers: Floats) -> list[list[float]]:
    return [[float(f"{each:.7g}") for each in row] for row in numbers]


def _fitted(vectors: Floats, right: Floats) -> tuple[Floats, Floats]:
    """Returns coefficients [M, H] and intercept [M], from vectors [N, H] and the members' probabilities of the right
    labels [N, M]. The penalty is the one with the highest likelihood on rows that were left out."""
    from sklearn.utils.extmath import randomized_svd

    center, scale = vectors.mean(axis=0), vectors.std(axis=0)
    scale[scale < 1e-9] = 1.0
    standard = (vectors - center) / scale
    components = min(COMPONENTS, *standard.shape)
    _, _, axes = randomized_svd(standard, components, random_state=0)
    read = standard @ axes.T
    penalty = _best_penalty(read, right)
    coefficients, intercept = _mixture(read, right, penalty)
    coefficients = coefficients @ axes / scale
    return coefficients, intercept - coefficients @ center


def _best_penalty(vectors: Floats, right: Floats) -> float:
    part = np.arange(len(right)) % FOLDS
    if len(right) < 2 * FOLDS:
        return PENALTIES[0]

    def left_out(penalty: float) -> float:
        total = 0.0
        for fold in range(FOLDS):
            inside, outside = part != fold, part == fold
            coefficients, intercept = _mixture(vectors[inside], right[inside], penalty)
            weights = softmax(vectors[outside] @ coefficients.T + intercept)
            total += float(np.log((weights * right[outside]).sum(axis=1)).sum())
        return total

    return max(PENALTIES, key=left_out)


def _mixture(vectors: Floats, right: Floats, penalty: float) -> tuple[Floats, Floats]:
    """Maximises the likelihood of the mixture, less the squared coefficients / (2 penalty). Where each row is known by
    one member alone, this is scikit-learn's multinomial logistic regression with C = `penalty`."""
    from scipy.optimize import minimize

    members, width = right.shape[1], vectors.shape[1]

    def loss(flat: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        table = flat.reshape(members, width + 1)
        weights = softmax(vectors @ table[:, :width].T + table[:, width])
        shares = weights * right
        totals = shares.sum(axis=1, keepdims=True)
        slope = weights - shares / totals
        gradient = np.empty_like(table)
        gradient[:, :width] = slope.T @ vectors + table[:, :width] / penalty
        gradient[:, width] = slope.sum(axis=0)
        value = -np.log(totals).sum() + (table[:, :width] ** 2).sum() / (2 * penalty)
        return float(value), gradient.ravel()

    found = minimize(
        loss, np.zeros(members * (width + 1)), jac=True, method="L-BFGS-B", options=_LIMITS
    )
    table = found.x.reshape(members, width + 1)
    return table[:, :width], table[:, width]

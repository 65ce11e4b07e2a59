"""Stacks by gradient boosting (Friedman 2001), and stores the trees in LightGBM's text format.

One model of boosted trees scores all labels. It starts from the members' plain average and corrects it, so that it
needs few rows. For each label it reads at most 16 numbers: the members' log-odds (or values), their mean and spread,
and, for labels, the difference between the mean and that of the best other label.

LightGBM can load the file as it is. What the model was fitted on stands in one more line of the header: `choir=` and
JSON.
"""

from typing import Any, Literal, Self

import numpy as np

from serve.fusion.errors import FusionError
from serve.fusion.members import Floats
from serve.fusion.stack.stacker import MAX_FEATURES, FittedOn, Stack, grouped
from serve.fusion.stack.trees import Trees
from serve.manifest import StackModel, Task

ROUNDS = 80
MEMBER_FEATURES = MAX_FEATURES - 3
"""Features beside the mean, the spread and the lead."""
SMALLEST_LEAF = 20
"""The fewest rows in a leaf; with few rows, a twentieth of them."""

_HEADER = "choir="


class BoostingParameters(FittedOn):
    """The line of LightGBM's file that says what the model was fitted on."""

    model: Literal["gradient_boosting"] = "gradient_boosting"


class BoostingStack(Stack):
    parameters: BoostingParameters

    def __init__(self, parameters: BoostingParameters, trees: str) -> None:
        """`trees`: a model in LightGBM's text format. Raises FusionError if it is not one for these members."""
        self.parameters = parameters
        self._text = trees
        self._trees = Trees.parse(trees, _width(len(parameters.members), parameters.columns))

    @classmethod
    def model_for(cls, task: Task) -> StackModel:
        return "gradient_boosting"

    @classmethod
    def fit_evidence(cls, evidence: Floats, indicators: Floats, fitted_on: FittedOn) -> Self:
        import lightgbm

        features, start = _features(evidence)
        rows = lightgbm.Dataset(
            features,
            label=indicators.ravel(),
            init_score=start,
            params={"verbosity": -1},
            free_raw_data=True,
        )
        options: dict[str, Any] = {
            "objective": "regression" if fitted_on.task == "regression" else "binary",
            "boost_from_average": False,
            "learning_rate": 0.05,
            "num_leaves": 8,
            "min_data_in_leaf": max(1, min(SMALLEST_LEAF, len(features) // 20)),
            "lambda_l2": 1.0,
            "seed": 0,
            "deterministic": True,
            "force_row_wise": True,
            "num_threads": 1,
            "verbosity": -1,
        }
        booster = lightgbm.train(options, rows, num_boost_round=ROUNDS)
        return cls(BoostingParameters(**fitted_on.model_dump()), booster.model_to_string())

    def scores(self, evidence: Floats) -> Floats:
        features, start = _features(evidence)
        return (start + self._trees.scores(features)).reshape(evidence.shape[1:])

    def content(self) -> str:
        # LightGBM reads its header as key=value lines with one equals sign each.
        about = self.parameters.model_dump_json(exclude_none=True).replace("=", "\\u003d")
        first, _, rest = self._text.partition("\n")
        return f"{first}\n{_HEADER}{about}\n{rest}"

    @classmethod
    def parse(cls, text: str) -> Self:
        header, _, _ = text.partition("\nTree=")
        # A label may hold what Unicode calls a line end; LightGBM and JSON know no other than this one.
        line = next((each for each in header.split("\n") if each.startswith(_HEADER)), None)
        if line is None:
            raise FusionError(
                f"The boosted trees do not say what they were fitted on: a line '{_HEADER}' is missing in the header."
            )
        parameters = BoostingParameters.model_validate_json(line.removeprefix(_HEADER))
        return cls(parameters, text.replace(line + "\n", "", 1))


def _width(members: int, columns: int) -> int:
    return min(members, MEMBER_FEATURES) + (3 if columns > 1 else 2)


def _features(evidence: Floats) -> tuple[Floats, Floats]:
    """Returns features [N x C, F] and the plain average that boosting starts from [N x C], for evidence [M, N, C]."""
    mean = evidence.mean(axis=0)
    columns = [*grouped(evidence, MEMBER_FEATURES), mean, evidence.std(axis=0)]
    if evidence.shape[2] > 1:
        columns.append(mean - _best_other(mean))
    return np.stack([column.ravel() for column in columns], axis=1), mean.ravel()


def _best_other(scores: Floats) -> Floats:
    """Returns, for each score in [N, C] (C > 1), the highest other score of its row."""
    second, first = np.moveaxis(np.partition(scores, -2, axis=1)[:, -2:], 1, 0)
    best: Floats = np.where(
        np.arange(scores.shape[1]) == scores.argmax(axis=1)[:, None],
        second[:, None],
        first[:, None],
    )
    return best

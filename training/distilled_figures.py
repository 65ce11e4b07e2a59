"""The figures by which a distilled adapter is compared with its teacher and the members, on the validation rows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from serve.bundle import Bundle
from serve.fusion.fitting.fit import fit_fusion
from serve.fusion.fitting.stored_scores import ValidationRows
from serve.fusion.fused import Answers
from serve.manifest import Ensemble, FusionSpec, Member, Method
from training.evaluation.evaluation import Evaluation, Labelled, answer_metrics
from training.evaluation.metrics.text import text_metrics
from training.leaderboard.criteria import LOWER_IS_BETTER, judged_by
from training.lone_rung import LoneRung
from training.progress import Watch
from training.recipe import RecipeError

Figures = Mapping[str, float]


class ValidationFigures(Protocol):
    """The figures of systems on the validation rows of one ensemble."""

    @property
    def rows(self) -> int:
        """The number of the rows."""

    def alone(self, member: Member) -> Figures:
        """Return a member's figures."""

    def fused(self) -> Figures:
        """Return the figures of the ensemble as it teaches."""

    def student(self, rung: LoneRung) -> Figures:
        """Return the figures of the distilled adapter."""


def figures_of(
    bundle: Bundle, ensemble: Ensemble, rows: Labelled, max_new_tokens: int, watch: Watch
) -> ValidationFigures:
    """Return the figures on the validation rows `rows`. Raises RecipeError if the bundle lacks the members' answers to
    them."""
    if ensemble.task == "generation":
        evaluation = Evaluation(bundle, ensemble, watch, max_new_tokens=max_new_tokens)
        return _Written(bundle, evaluation, rows, max_new_tokens, watch)
    return _Stored.read(bundle, ensemble)


def best_of(names: Mapping[str, Figures], metric: str) -> str:
    """Return the name with the best figure in `metric`."""
    sign = 1 if metric in LOWER_IS_BETTER else -1
    return min(names, key=lambda name: sign * names[name][metric])


def teaches_by(ensemble: Ensemble) -> Method:
    """Return the method by which the ensemble teaches. Shares of votes say nothing about labels without a vote."""
    votes = ensemble.fusion.method == "vote" and ensemble.task != "generation"
    return "average" if votes else ensemble.fusion.method


@dataclass(frozen=True)
class _Stored:
    """Of labels and values: from the stored outputs. In classification each has a temperature of its own."""

    ensemble: Ensemble
    stored: ValidationRows
    outputs: NDArray[np.float64]
    """[M, N, C] or [M, N]"""
    vectors: NDArray[np.float64] | None

    @classmethod
    def read(cls, bundle: Bundle, ensemble: Ensemble) -> "_Stored":
        scores = bundle.validation_scores(ensemble.name)
        rows = scores.rows()
        found = (
            [scores.outputs(each, rows.header.rows) for each in ensemble.members] if rows else []
        )
        outputs = [each for each in found if each is not None]
        if rows is None or len(outputs) < len(ensemble.members):
            raise RecipeError(
                f"{bundle.path} lacks what the members of {ensemble.id} answer to the validation rows; train it again"
            )
        return cls(ensemble, rows, np.stack(outputs), scores.vectors(rows.header.rows))

    @property
    def rows(self) -> int:
        return len(self.stored.truth)

    def alone(self, member: Member) -> Figures:
        place = self.ensemble.members.index(member)
        update = {"members": [member], "fusion": FusionSpec(method="average")}
        lone = self.ensemble.model_copy(update=update)
        return self._fitted(lone, self.outputs[place : place + 1], "average")

    def fused(self) -> Figures:
        return self._fitted(self.ensemble, self.outputs, teaches_by(self.ensemble))

    def student(self, rung: LoneRung) -> Figures:
        assert rung.validation is not None, "only generation has no stored validation rows"
        return self._figures(rung.validation)

    def _figures(self, answers: Answers) -> Figures:
        whole = np.ones((1, self.rows))
        metrics = answer_metrics(answers, self.stored.truth)
        names = judged_by(self.ensemble.task)
        return {name: float(metrics[name](whole)[0]) for name in names}

    def _fitted(self, ensemble: Ensemble, outputs: NDArray[np.float64], method: Method) -> Figures:
        options = self.stored.header.options.model_copy(
            update={"method": method, "candidates": [method], "early_exit": None}
        )
        truth, folds = self.stored.truth, self.stored.folds
        fitted = fit_fusion(ensemble, options, outputs, truth, folds, self.vectors)
        return self._figures(fitted.validation[method])


class _Written:
    """Of generation: from the answers that are written to the rows."""

    def __init__(
        self,
        bundle: Bundle,
        evaluation: Evaluation,
        rows: Labelled,
        max_new_tokens: int,
        watch: Watch,
    ) -> None:
        self._bundle = bundle
        self._evaluation = evaluation
        self._labelled = rows
        self._max_new_tokens = max_new_tokens
        self._watch = watch
        self._answers = evaluation.answers(rows)

    @property
    def rows(self) -> int:
        return len(self._labelled.texts)

    def alone(self, member: Member) -> Figures:
        return self._figures(self._answers[self._evaluation.ensemble.members.index(member)])

    def fused(self) -> Figures:
        return self._figures(self._evaluation.served(self._labelled))

    def student(self, rung: LoneRung) -> Figures:
        alone = Evaluation(
            self._bundle, rung.manifest, self._watch, max_new_tokens=self._max_new_tokens
        )
        return self._figures(alone.answers(self._labelled)[0])

    def _figures(self, answers: Sequence[str]) -> Figures:
        whole = np.ones((1, self.rows))
        metrics = text_metrics(answers, self._labelled.references)
        return {name: float(metrics[name](whole)[0]) for name in judged_by("generation")}

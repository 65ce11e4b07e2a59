"""The figures of a retrained member and of its ensemble with it, beside those before, all on the validation rows."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from serve.fusion.asking.choice import served_answers
from serve.fusion.fitting.fit import Fitted, refit_fusion
from serve.fusion.fitting.stored_scores import ValidationRows, ValidationScores
from serve.fusion.fuse import Fusion
from serve.fusion.fused import Answers
from serve.manifest import Ensemble
from training.evaluation.evaluation import answer_metrics
from training.evaluation.metrics.resampling import Comparison, Gap, Metric
from training.evaluation.scores import EvaluationReport
from training.evaluation.tables import HEADINGS, MAIN, number


@dataclass(frozen=True)
class Figure:
    """One figure now and before."""

    of: str
    """What it is the figure of, as the beginning of a sentence."""
    metric: str
    now: float
    before: float | None
    """None if it is not known."""
    gap: Gap | None = None
    """The difference with its interval, where both were judged on the same rows."""

    def line(self) -> str:
        """Return the figure in a sentence."""
        said = f"{self.of}: {HEADINGS[self.metric]} {number(self.now, self.metric)}"
        if self.before is None:
            return said
        said += f", before {number(self.before, self.metric)}"
        if self.gap is None:
            return said
        value, low, high = (
            number(each, self.metric, "+") for each in (self.gap.value, self.gap.low, self.gap.high)
        )
        return f"{said} (difference {value}, 95% of resamples in [{low}, {high}])"


@dataclass(frozen=True)
class Refitted:
    """An ensemble whose fusion was fitted again to the stored outputs, as a swap would."""

    fitted: Fitted
    outputs: NDArray[np.float64]
    """[M, N, C] or [M, N]."""
    vectors: NDArray[np.float64] | None = None
    """The base's vectors of the rows [N, H], which a gate reads."""

    @property
    def served(self) -> Answers:
        """The answers to the validation rows as an engine would give them."""
        fusion = Fusion(self.fitted.ensemble, self.fitted.parameters)
        return served_answers(fusion, self.outputs, self.vectors)


def refitted(ensemble: Ensemble, stored: ValidationScores, rows: ValidationRows) -> Refitted | None:
    """Fit the fusion again; None if the outputs of a member are not stored."""
    found = [stored.outputs(each, rows.header.rows) for each in ensemble.members]
    outputs = [each for each in found if each is not None]
    if len(outputs) < len(found):
        return None
    said = np.stack(outputs)
    vectors = stored.vectors(rows.header.rows)
    fitted = refit_fusion(ensemble, rows.header.options, said, rows.truth, rows.folds, vectors)
    return Refitted(fitted, said, vectors)


def label_figures(
    before: Ensemble, after: Ensemble, member: str, stored: ValidationScores, rows: ValidationRows
) -> list[Figure]:
    """Return the figures of the member and of the ensemble. The ensemble's fusion is fitted anew both times, and each
    row is judged by a fit that had not seen it. There is none of the ensemble if the outputs of another member are not
    stored."""
    metric, count = MAIN[after.task], len(rows.truth)
    judged = [_Judged.of(each, member, stored, rows) for each in (after, before)]
    systems = {
        f"{member} on {count} validation rows": [each.alone for each in judged],
        f"{after.name} with it": [each.fused for each in judged],
    }
    return [
        _figure(name, metric, count, now, then)
        for name, (now, then) in systems.items()
        if now is not None
    ]


def text_figures(
    after: EvaluationReport, before: EvaluationReport | None, member: str, name: str
) -> list[Figure]:
    """Return the figures of the member and of the ensemble called `name`, from evaluations of written answers."""
    metric = MAIN["generation"]
    now = [report.scores[metric] for report in (after.member(member), after.served())]
    then: list[float | None] = [None, None]
    if before is not None and before.count == after.count:
        then = [row.scores[metric] for row in (before.member(member), before.served())]
    names = (f"{member} on {after.count} validation rows", f"{name} with it")
    return [
        Figure(each, metric, value, old) for each, value, old in zip(names, now, then, strict=True)
    ]


@dataclass(frozen=True)
class _Judged:
    """The metrics of one member's answers and of its ensemble's; None if something is not stored."""

    alone: Mapping[str, Metric] | None
    fused: Mapping[str, Metric] | None

    @classmethod
    def of(
        cls, ensemble: Ensemble, member: str, stored: ValidationScores, rows: ValidationRows
    ) -> "_Judged":
        found, fused, alone = refitted(ensemble, stored, rows), None, None
        if found is not None:
            ensemble, method = found.fitted.ensemble, ensemble.fusion.method
            answers = found.fitted.validation[method]
            fused = answer_metrics(answers, rows.truth, shares=method == "vote")
        [own] = (each for each in ensemble.members if each.name == member)
        outputs = stored.outputs(own, rows.header.rows)
        if outputs is not None:
            alone = answer_metrics(Fusion(ensemble).alone(outputs), rows.truth)
        return cls(alone, fused)


def _figure(
    name: str,
    metric: str,
    count: int,
    now: Mapping[str, Metric],
    before: Mapping[str, Metric] | None,
) -> Figure:
    if before is None:
        return Figure(name, metric, Comparison([now], count).scores[0][metric], None)
    compared = Comparison([{metric: each[metric]} for each in (now, before)], count)
    then = compared.scores[1][metric]
    return Figure(name, metric, compared.scores[0][metric], then, compared.gap(metric, 0, [1]))

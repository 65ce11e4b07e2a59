"""The figures of a retrained member and of its ensemble with it, beside those before, all on the validation rows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from serve.fusion.fitting.fit import refit_fusion
from serve.fusion.fitting.stored_scores import ValidationRows, ValidationScores
from serve.fusion.fuse import Fusion
from serve.manifest import Ensemble, Member
from training.evaluation.evaluation import answer_metrics
from training.evaluation.metrics.resampling import Comparison, Gap, Metric
from training.evaluation.scores import EvaluationReport
from training.evaluation.tables import HEADINGS, MAIN, number

Outputs = Mapping[str, NDArray[np.float64]]
"""Each member's outputs [N, C] or [N] by the member's name."""


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


def stored_outputs(
    stored: ValidationScores, rows: ValidationRows, members: Sequence[Member]
) -> Outputs:
    """Return the outputs that are stored of these members."""
    found = {each.name: stored.outputs(each, rows.header.rows) for each in members}
    return {name: outputs for name, outputs in found.items() if outputs is not None}


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
    return [Figure(each, metric, *pair) for each, *pair in zip(names, now, then, strict=True)]


@dataclass(frozen=True)
class _Judged:
    """The metrics of one member's answers and of its ensemble's; None if something is not stored."""

    alone: Mapping[str, Metric] | None
    fused: Mapping[str, Metric] | None

    @classmethod
    def of(
        cls, ensemble: Ensemble, member: str, stored: ValidationScores, rows: ValidationRows
    ) -> "_Judged":
        outputs = stored_outputs(stored, rows, ensemble.members)
        fused = None
        if len(outputs) == len(ensemble.members):
            said = np.stack([outputs[each.name] for each in ensemble.members])
            options, method = rows.header.options, ensemble.fusion.method
            fitted = refit_fusion(ensemble, options, said, rows.truth, rows.folds)
            ensemble = fitted.ensemble
            answers = fitted.validation[method]
            fused = answer_metrics(answers, rows.truth, shares=method == "vote")
        alone = None
        if member in outputs:
            alone = answer_metrics(Fusion(ensemble).alone(outputs[member]), rows.truth)
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

"""The charts of an ensemble, made from its answers, its stages and its leaderboard."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from serve.fusion.fused import Answers, FusedValues
from serve.manifest import Abstain
from training.evaluation.abstaining import USUAL, given_answers
from training.evaluation.curves import RiskCoverage, reliability, risk_coverage
from training.evaluation.diversity import Diversity
from training.evaluation.scores import EvaluationReport
from training.evaluation.tables import HEADINGS, MAIN
from training.evaluation.validation_answers import ValidationAnswers
from training.report.axis import Axis
from training.report.chart import Chart, Dot, DotPlot, Line
from training.stages.curve import Curve

SHOWN_COVERAGES = (1.0, 0.95, 0.9, 0.8, 0.7, 0.5)
"""The coverages in the table below the curve."""


@dataclass(frozen=True)
class RiskRow:
    """One system's risk at the shown coverages."""

    name: str
    risks: list[float]
    area: float


@dataclass(frozen=True)
class AnswerCharts:
    """The charts of what an ensemble and its members answer to the validation rows."""

    reliability: Chart | None
    risk: Chart
    risks: list[RiskRow]


def answer_charts(answers: ValidationAnswers) -> AnswerCharts:
    """Return the reliability diagram, and risk against coverage with its table."""
    systems = _systems(answers)
    curves = {name: risk_coverage(each, answers.truth) for name, each in systems.items()}
    values = isinstance(answers.served, FusedValues)
    bound = answers.ensemble.fusion.abstain or USUAL
    given = given_answers(answers.ensemble, answers.served, bound)
    surest = (
        "Surest: the members are closest together."
        if values
        else "Surest: the answer's probability is highest."
    )
    risk = Chart(
        "Risk against coverage",
        "How wrong the answers are if only the surest are given."
        if values
        else "The share of wrong answers if only the surest are given.",
        Axis.over("share of rows answered", [0.0, 1.0]),
        Axis.over(
            "RMSE" if values else "share wrong",
            [risk for curve in curves.values() for risk in curve.risk],
            zero=True,
        ),
        _lines({name: _points(each.coverage, each.risk) for name, each in curves.items()}),
        rule=None if given is None else float(given.mean()),
        note=surest if given is None else f"{surest} {_abstaining(given, bound)}",
    )
    risks = [
        RiskRow(name, [risk_at(curve, at) for at in SHOWN_COVERAGES], curve.area)
        for name, curve in curves.items()
    ]
    return AnswerCharts(_reliability_chart(systems, answers), risk, risks)


def _abstaining(given: NDArray[np.bool_], bound: Abstain) -> str:
    """Return what the upright line is. `given` [N] are the answers that do not abstain."""
    promise = (
        f"at most {bound.risk:.1%} of the answers are wrong, with {bound.confidence:.0%} confidence"
    )
    if not given.any():
        return f"There are too few rows to show that {promise}: an ensemble that must keep this abstains always."
    return f"The dotted upright line: up to there, {promise}; the other {1 - given.mean():.1%} would abstain."


def risk_at(curve: RiskCoverage, coverage: float) -> float:
    """Return the risk of a curve at a coverage, from the points beside it."""
    pairs = list(zip(curve.coverage, curve.risk, strict=True))
    before = max((pair for pair in pairs if pair[0] <= coverage), default=pairs[0])
    after = min((pair for pair in pairs if pair[0] >= coverage), default=pairs[-1])
    if after[0] <= before[0]:
        return before[1]
    share = (coverage - before[0]) / (after[0] - before[0])
    return before[1] + share * (after[1] - before[1])


def _reliability_chart(systems: Mapping[str, Answers], answers: ValidationAnswers) -> Chart | None:
    found = {name: reliability(each, answers.truth) for name, each in systems.items()}
    points = {
        name: _points(each.confidence, each.accuracy)
        for name, each in found.items()
        if each is not None
    }
    if not points:
        return None
    multilabel = answers.ensemble.task == "multilabel"
    lowest = min(min(x, y) for line in points.values() for x, y in line)
    return Chart(
        "Reliability",
        "Of the labels that are called likely, as many should be true."
        if multilabel
        else "Of the answers that are called likely, as many should be right.",
        Axis.over("confidence", [lowest, 1.0]),
        Axis.over("share true" if multilabel else "share right", [lowest, 1.0]),
        _lines(points, dots=True),
        diagonal=True,
        note="Bins of equal size; on the dotted line, confidence and share are equal."
        + ("" if multilabel else " Each member has a temperature of its own, as the ensemble has."),
    )


def stage_plot(report: EvaluationReport, task: str) -> DotPlot:
    """Return the main figure after each stage, with its interval."""
    main = MAIN[task]
    spans = {row.name: row.intervals.get(main) or (row.scores[main],) * 2 for row in report.rows}
    ends = [end for span in spans.values() for end in span]
    return DotPlot(
        "Gain of each stage",
        f"{HEADINGS[main]} on {report.count} validation rows after each stage, with its interval.",
        Axis.over(HEADINGS[main], ends),
        [
            Dot(row.name, row.scores[main], *spans[row.name], text=f"{row.scores[main]:.4f}")
            for row in report.rows
        ],
    )


def removal_plot(diversity: Diversity) -> DotPlot | None:
    """Return what the ensemble loses without each member; None if there is one member."""
    if not diversity.removals:
        return None
    heading = HEADINGS.get(diversity.criterion, diversity.criterion.replace("_", " "))
    ends = [end for each in diversity.removals for end in each.interval]
    return DotPlot(
        "What each member is worth",
        f"How much worse the ensemble's {heading} ({diversity.value:.4f}) is without the member; left of the line, it "
        "is better without it.",
        Axis.over(heading, [*ends, 0.0]),
        [
            Dot(
                each.member,
                each.loss,
                *each.interval,
                text=f"{each.loss:+.4f}, p = {each.p:.3f}",
                strong=each.helps,
            )
            for each in diversity.removals
        ],
        zero=True,
    )


def learning_charts(curves: Sequence[Curve]) -> list[Chart]:
    """Return the losses by step: one chart for each stage of the base, and one for each kind of stage of an ensemble,
    with a line for each member."""
    groups: dict[str, list[tuple[str, Curve]]] = {}
    for curve in sorted(curves, key=lambda each: each.title):
        group, name = _place(curve.title)
        groups.setdefault(group, []).append((name, curve))
    charts = []
    for group, own in groups.items():
        lines = []
        for number, (name, curve) in enumerate(own):
            lines.append(Line(name, curve.training, number))
            if curve.held_out:
                held = f"{name}, held out"
                lines.append(Line(held, curve.held_out, number, dots=True, repeats=True))
        lines = [line for line in lines if line.points]
        if lines:
            points = [point for line in lines for point in line.points]
            charts.append(
                Chart(
                    f"Learning: {group}",
                    "The training loss by step."
                    + (
                        " Dashed: the loss on held-out rows."
                        if any(x.repeats for x in lines)
                        else ""
                    ),
                    Axis.over("step", [x for x, _ in points], zero=True, whole=True),
                    Axis.over("loss", [y for _, y in points]),
                    lines,
                    note="Losses of different tasks and kinds of stages cannot be compared.",
                )
            )
    return charts


def _place(title: str) -> tuple[str, str]:
    """Return the chart that a stage belongs to, and the name of its line there."""
    ensemble, _, rest = title.partition("/")
    if not rest or ensemble.startswith("base "):
        return title, title
    member, _, kind = rest.partition("/")
    return f"{ensemble}, {kind}" if kind else ensemble, member


def _systems(answers: ValidationAnswers) -> dict[str, Answers]:
    """Return the ensemble and its members by the names that charts give them, the ensemble first."""
    method = answers.ensemble.fusion.method.replace("_", " ")
    return {f"ensemble ({method})": answers.served, **answers.members}


def _lines(
    points: Mapping[str, Sequence[tuple[float, float]]], *, dots: bool = False
) -> list[Line]:
    """Return a line for each system. The first, the ensemble, is drawn last and strong."""
    lines = [
        Line(name, each, number, strong=number == 0, dots=dots)
        for number, (name, each) in enumerate(points.items())
    ]
    return [*lines[1:], lines[0]]


def _points(across: Sequence[float], up: Sequence[float]) -> list[tuple[float, float]]:
    return list(zip(across, up, strict=True))

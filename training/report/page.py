"""The page of the report: one HTML file that asks no host for anything."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from serve.fusion.fused import Fused
from serve.manifest import Ensemble
from training.evaluation.curves import Confusion, confusion
from training.evaluation.diversity import Diversity
from training.evaluation.scores import EvaluationReport
from training.evaluation.tables import (
    HEADINGS,
    figure,
    figures_in,
    interval,
    number,
    report_lines,
)
from training.evaluation.validation_answers import ValidationAnswers
from training.leaderboard.board import Leaderboard
from training.report.board_chart import board_chart
from training.report.chart import Chart, DotPlot
from training.report.figures import (
    SHOWN_COVERAGES,
    AnswerCharts,
    answer_charts,
    learning_charts,
    removal_plot,
    stage_plot,
)
from training.stages.curve import Curve

STAGES = "stage"


@dataclass(frozen=True)
class Findings:
    """What a training run recorded."""

    title: str
    created: str | None
    notes: Sequence[str]
    reports: Sequence[EvaluationReport]
    curves: Sequence[Curve]
    data: Mapping[str, Any]
    """The ledger's counts, notes and overlaps."""
    versions: Mapping[str, str]
    commands: Sequence[str]
    """What makes the bundle and its figures."""


@dataclass(frozen=True)
class EnsembleFigures:
    """What a bundle holds about one ensemble besides its evaluations."""

    ensemble: Ensemble
    answers: ValidationAnswers | None
    diversity: Diversity | None
    board: Leaderboard | None
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class _Section:
    """One ensemble on the page."""

    name: str
    board: Leaderboard | None
    board_chart: Chart | None
    reports: list[EvaluationReport]
    stages: list[DotPlot]
    charts: AnswerCharts | None
    confusion: Confusion | None
    diversity: Diversity | None
    removals: DotPlot | None
    notes: Sequence[str]
    learning: list[Chart] = field(default_factory=list)


def page(findings: Findings, ensembles: Sequence[EnsembleFigures]) -> str:
    """Return the page as HTML."""
    templates = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    names = [each.ensemble.name for each in ensembles]
    return templates.get_template("page.html").render(
        findings=findings,
        sections=[_section(findings, each) for each in ensembles],
        learning=learning_charts(
            [each for each in findings.curves if each.title.partition("/")[0] not in names]
        ),
        commands=findings.commands,
        coverages=SHOWN_COVERAGES,
        headings=HEADINGS,
        largest=_largest,
        figures_in=figures_in,
        figure=figure,
        written=number,
        interval=interval,
        report_lines=report_lines,
    )


def _section(findings: Findings, figures: EnsembleFigures) -> _Section:
    ensemble, answers = figures.ensemble, figures.answers
    own = [each for each in findings.reports if each.ensemble.partition("@")[0] == ensemble.name]
    staged = [report for report in own if all(row.kind == STAGES for row in report.rows)]
    served = answers.served if answers else None
    return _Section(
        name=ensemble.name,
        board=figures.board,
        board_chart=board_chart(figures.board) if figures.board else None,
        reports=own,
        stages=[stage_plot(report, ensemble.task) for report in staged],
        charts=answer_charts(answers) if answers else None,
        confusion=confusion(served, answers.truth, ensemble.labels or [])
        if answers and isinstance(served, Fused)
        else None,
        diversity=figures.diversity,
        removals=removal_plot(figures.diversity) if figures.diversity else None,
        notes=figures.notes,
        learning=learning_charts(
            [each for each in findings.curves if each.title.partition("/")[0] == ensemble.name]
        ),
    )


def _largest(values: Sequence[Sequence[float | None]]) -> float:
    """Return the largest absolute value of a matrix, and never 0: cells are coloured by their share of it."""
    return max((abs(value) for row in values for value in row if value), default=1.0)

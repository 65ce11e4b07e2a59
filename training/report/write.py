"""Writes the report into the bundle: the figures as JSON, and the page."""

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from serve.bundle import Bundle
from serve.errors import UserError
from serve.files import write_atomically
from serve.fusion.errors import FusionError
from training.evaluation.diversity import Diversity, diversity_of
from training.evaluation.scores import EvaluationReport
from training.evaluation.validation_answers import ValidationAnswers
from training.leaderboard.board import Leaderboard, read_board
from training.report.page import EnsembleFigures, Findings, page
from training.report.versions import versions
from training.stages.curve import Curve

FOLDER = "report"
METRICS, PAGE = "metrics.json", "index.html"


class ReportError(UserError, ValueError):
    """The report of a bundle cannot be drawn. The message is one sentence for the bundle's owner."""


def write_report(
    bundle: Bundle,
    title: str,
    reports: Sequence[EvaluationReport],
    facts: Mapping[str, Any],
    notes: Sequence[str] = (),
) -> list[Diversity]:
    """Write `report/metrics.json` and `report/index.html`, and return the diversity of each ensemble whose members'
    outputs are stored. The page has the `notes` at its top; the JSON has the `facts` beside the reports."""
    figures = _all_figures(bundle, reports)
    diversities = [each.diversity for each in figures if each.diversity is not None]
    metrics = {
        **facts,
        "title": title,
        "notes": [*notes],
        "versions": versions(),
        "diversity": [each.model_dump() for each in diversities],
        "reports": [report.model_dump() for report in reports],
    }
    folder = bundle.path / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / METRICS, json.dumps(metrics, indent=2) + "\n")
    write_atomically(folder / PAGE, page(_findings(metrics, bundle.path.name), figures))
    return diversities


def draw_page(bundle: Bundle) -> Path:
    """Draw `report/index.html` again, from the figures, the leaderboards and the stored outputs in the bundle, and
    return its path. Raises ReportError if the bundle has no figures."""
    file = bundle.path / FOLDER / METRICS
    try:
        metrics = json.loads(file.read_text(encoding="utf-8"))
        findings = _findings(metrics, bundle.path.name)
    except OSError:
        raise ReportError(
            f"{bundle.path} has no {FOLDER}/{METRICS}, which `choir train` writes; train it to its end first"
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ReportError(
            f"{file} is not the record of a training run; restore the file that `choir train` wrote"
        ) from None
    target = bundle.path / FOLDER / PAGE
    write_atomically(target, page(findings, _all_figures(bundle, findings.reports)))
    return target


def _findings(metrics: Mapping[str, Any], bundle: str) -> Findings:
    reports = [EvaluationReport.model_validate(each) for each in metrics["reports"]]
    return Findings(
        title=metrics.get("title") or metrics["recipe"],
        created=metrics.get("created"),
        notes=metrics.get("notes", []),
        reports=reports,
        curves=[Curve.model_validate(each) for each in metrics.get("curves", [])],
        data=metrics.get("data", {}),
        versions=metrics.get("versions") or {"Choir": str(metrics.get("choir"))},
        commands=_commands(metrics.get("command"), reports, bundle),
    )


def _commands(trained: str | None, reports: Sequence[EvaluationReport], bundle: str) -> list[str]:
    """Return the commands that make the bundle and its figures, and serve it. A bundle of an earlier version does not
    say how it was trained."""
    names = dict.fromkeys(report.ensemble.partition("@")[0] for report in reports)
    judged = [
        f"choir {verb} {shlex.quote(bundle)} --ensemble {name}"
        for name in names
        for verb in ("evaluate", "leaderboard")
    ]
    return [*([trained] if trained else []), *judged, f"choir serve {shlex.quote(bundle)}"]


def _all_figures(bundle: Bundle, reports: Sequence[EvaluationReport]) -> list[EnsembleFigures]:
    """Return the figures of each ensemble that was evaluated, in the version that was."""
    versions_of = {report.ensemble.partition("@")[0]: report.ensemble for report in reports}
    return [
        _figures(bundle, name, int(evaluated.rpartition("@")[2]))
        for name, evaluated in versions_of.items()
    ]


def _figures(bundle: Bundle, name: str, version: int) -> EnsembleFigures:
    """Return what the bundle holds about an ensemble besides its evaluations. What cannot be read is left out with a
    note, so that the rest of the report is written."""
    ensemble, notes = bundle.ensemble(name, version), []
    answers, diversity, board = None, None, None
    if ensemble.task != "generation":
        try:
            answers = ValidationAnswers.read(bundle, ensemble)
            diversity = diversity_of(answers) if answers else None
        except FusionError as error:
            notes.append(f"The figures of the validation rows are left out: {error}")
    if answers is None and not notes:
        notes.append(
            "Text is not compared label by label, so there are no reliability, risk and diversity here."
            if ensemble.task == "generation"
            else "The bundle does not store what these members answer to the validation rows, so figures of them are "
            "left out."
        )
    try:
        board = _board(bundle, name)
    except ReportError as error:
        notes.append(str(error))
    return EnsembleFigures(ensemble, answers, diversity, board, notes)


def _board(bundle: Bundle, name: str) -> Leaderboard | None:
    try:
        return read_board(bundle.path, name)
    except (ValueError, OSError):
        raise ReportError(
            f"The leaderboard of {name} cannot be read; `choir leaderboard` writes it again."
        ) from None

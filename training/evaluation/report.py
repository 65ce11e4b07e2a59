"""Writes the run's report into the bundle: the figures as JSON, and a page for a browser."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader

from serve.files import write_atomically
from training.evaluation.scores import EvaluationReport
from training.evaluation.tables import HEADINGS, figure, figures_in, interval, report_lines


def write_report(
    folder: Path,
    title: str,
    reports: Sequence[EvaluationReport],
    facts: Mapping[str, Any],
    notes: Sequence[str] = (),
) -> None:
    """Write `metrics.json` and `index.html` to `folder`. The page has the `notes` above the tables; the JSON has the
    `facts` beside the reports."""
    folder.mkdir(parents=True, exist_ok=True)
    metrics = {**facts, "reports": [report.model_dump() for report in reports]}
    write_atomically(folder / "metrics.json", json.dumps(metrics, indent=2) + "\n")
    templates = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True)
    page = templates.get_template("report.html").render(
        title=title,
        notes=notes,
        reports=reports,
        headings=HEADINGS,
        figures_in=figures_in,
        figure=figure,
        interval=interval,
        report_lines=report_lines,
    )
    write_atomically(folder / "index.html", page)

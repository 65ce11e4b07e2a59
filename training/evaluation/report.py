"""The run's report in the bundle: figures as JSON, and a page that needs nothing but a browser."""

import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from training.evaluation.scores import Report
from training.evaluation.tables import HEADINGS, figure, figures_in, interval, report_lines

PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; }}
table {{ border-collapse: collapse; margin: 1rem 0 2rem; }}
th, td {{ padding: .3rem .8rem; border-bottom: 1px solid #ddd; text-align: right; }}
th:nth-child(-n+2), td:nth-child(-n+2) {{ text-align: left; }}
small {{ color: #777; white-space: nowrap; }}
tr.served {{ font-weight: bold; background: #eef6ee; }}
</style>
<h1>{title}</h1>
<p>Members and every way to fuse them. The highlighted row is what the ensemble answers by. Validation figures of fitted
methods are cross-fitted: each row is judged by a fit that did not see it. Intervals are the middle 95% of 1,000
bootstrap resamples of the rows; every method is judged on the same resamples.</p>
{notes}{tables}
</html>
"""


def write_report(
    folder: Path,
    title: str,
    reports: Sequence[Report],
    facts: Mapping[str, Any],
    notes: Sequence[str] = (),
) -> None:
    """Write `metrics.json` and `index.html` into `folder`; `notes` stand above the tables."""
    folder.mkdir(parents=True, exist_ok=True)
    metrics = {**facts, "reports": [report.model_dump() for report in reports]}
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    tables = "\n".join(_table(report) for report in reports)
    (folder / "index.html").write_text(
        PAGE.format(title=html.escape(title), notes=_paragraphs(notes), tables=tables),
        encoding="utf-8",
    )


def _table(report: Report) -> str:
    names = figures_in(report)
    head = "".join(
        f"<th>{html.escape(name)}</th>"
        for name in ["", "kind", *map(HEADINGS.__getitem__, names), "passes"]
    )
    lines = []
    for row in report.rows:
        words = [html.escape(row.name), row.kind]
        figures = [f"{figure(row, name)} <small>{interval(row, name)}</small>" for name in names]
        cells = "".join(f"<td>{cell}</td>" for cell in [*words, *figures, str(row.passes)])
        mark = ' class="served"' if row.served else ""
        lines.append(f"<tr{mark}>{cells}</tr>")
    caption = html.escape(f"{report.ensemble}: {report.count} {report.data} rows")
    said = _paragraphs(report_lines(report))
    return (
        f"<h2>{caption}</h2>\n<table><tr>{head}</tr>\n" + "\n".join(lines) + f"\n</table>\n{said}"
    )


def _paragraphs(lines: Sequence[str]) -> str:
    return "".join(f"<p>{html.escape(line)}</p>\n" for line in lines)

"""The run's report in the bundle: figures as JSON, and a page that needs nothing but a browser."""

import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from training.evaluation import HEADINGS, difference_lines, figure
from training.scores import Report

PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; }}
table {{ border-collapse: collapse; margin: 1rem 0 2rem; }}
th, td {{ padding: .3rem .8rem; border-bottom: 1px solid #ddd; text-align: right; }}
th:nth-child(-n+2), td:nth-child(-n+2) {{ text-align: left; }}
tr.served {{ font-weight: bold; background: #eef6ee; }}
</style>
<h1>{title}</h1>
<p>Members and every way to fuse them. The highlighted row is what the ensemble answers by. Validation figures of fitted
methods are cross-fitted: each row is judged by a fit that did not see it.</p>
{tables}
</html>
"""


def write_report(
    folder: Path, title: str, reports: Sequence[Report], facts: Mapping[str, Any]
) -> None:
    """Write `metrics.json` and `index.html` into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    metrics = {**facts, "reports": [report.model_dump() for report in reports]}
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    tables = "\n".join(_table(report) for report in reports)
    (folder / "index.html").write_text(
        PAGE.format(title=html.escape(title), tables=tables), encoding="utf-8"
    )


def _table(report: Report) -> str:
    scores = [score for score in HEADINGS if any(score in row.scores for row in report.rows)]
    head = "".join(
        f"<th>{html.escape(name)}</th>"
        for name in ["", "kind", *map(HEADINGS.__getitem__, scores), "passes"]
    )
    lines = []
    for row in report.rows:
        figures = [figure(row, score) for score in scores]
        cells = "".join(
            f"<td>{html.escape(cell)}</td>"
            for cell in [row.name, row.kind, *figures, str(row.passes)]
        )
        mark = ' class="served"' if row.served else ""
        lines.append(f"<tr{mark}>{cells}</tr>")
    caption = html.escape(f"{report.ensemble}: {report.count} {report.data} rows")
    gains = "".join(f"<p>{html.escape(line)}</p>\n" for line in difference_lines(report))
    return (
        f"<h2>{caption}</h2>\n<table><tr>{head}</tr>\n" + "\n".join(lines) + f"\n</table>\n{gains}"
    )

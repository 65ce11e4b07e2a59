"""The table of an evaluation in the terminal, and the headings and formats that the report's page uses too."""

from serve.terminal.screen import Screen
from serve.terminal.sheet import Sheet, whole
from serve.terminal.sheet import number as column
from serve.terminal.words import counted
from training.evaluation.scores import EvaluationReport, Row

HEADINGS = {
    "accuracy": "accuracy",
    "exact_match": "exact match",
    "macro_precision": "macro precision",
    "macro_recall": "macro recall",
    "macro_f1": "macro F1",
    "micro_precision": "micro precision",
    "micro_recall": "micro recall",
    "micro_f1": "micro F1",
    "weighted_precision": "weighted precision",
    "weighted_recall": "weighted recall",
    "weighted_f1": "weighted F1",
    "log_loss": "log loss",
    "ece": "ECE",
    "coverage": "coverage",
    "risk": "risk",
    "rmse": "RMSE",
    "mae": "MAE",
    "r2": "R²",
    "pearson": "Pearson",
    "spearman": "Spearman",
    "token_f1": "word F1",
    "bleu": "BLEU",
    "chrf": "chrF",
    "rouge1": "ROUGE-1",
    "rouge2": "ROUGE-2",
    "rougeL": "ROUGE-L",
    "meteor": "METEOR",
    "meteor_exact_stem": "METEOR (exact, stem)",
}
PERCENT = {"bleu", "chrf"}
"""Figures from 0 to 100, which are shown with two decimals."""
MAIN = {
    "classification": "accuracy",
    "multilabel": "micro_f1",
    "regression": "spearman",
    "generation": "bleu",
}
"""The metric by which the systems of each task are compared."""
SERVED = "served"
"""The kind of the fusion method in the manifest, in the terminal."""
IN_PAGE_ONLY = {
    "macro_precision", "macro_recall", "micro_precision", "micro_recall", "weighted_precision", "weighted_recall",
    "weighted_f1", "rouge1", "rouge2",
}  # fmt: skip
"""Figures that are left out in the terminal to save space; the JSON and the report's page have all figures."""


def figures_in(report: EvaluationReport) -> list[str]:
    """Return the names of the figures in the report, in the order of the headings. Micro F1 is left out if it equals
    the accuracy."""
    found = {name for row in report.rows for name in row.scores}
    if "accuracy" in found:
        found.discard("micro_f1")
    return [name for name in HEADINGS if name in found]


def table(report: EvaluationReport, *, narrow: bool = False) -> Sheet:
    """Return the table of a report. The metric of the differences has its interval, unless `narrow`."""
    main = report.differences[0].metric if report.differences else None
    names = [name for name in figures_in(report) if name not in IN_PAGE_ONLY]
    figures = [column(HEADINGS[name]) for name in names]
    columns = [whole(""), whole("kind"), *figures, column("passes")]
    shown = Sheet(f"{report.ensemble} on {counted(report.count, f'{report.data} row')}", columns)
    for row in report.rows:
        cells = [
            f"{figure(row, name)} {interval(row, name)}".rstrip()
            if name == main and not narrow
            else figure(row, name)
            for name in names
        ]
        kind = SERVED if row.served else row.kind
        shown.add_row(row.name, kind, *cells, f"{row.passes:.3g}", marked=row.served)
    return shown


def show(report: EvaluationReport, screen: Screen) -> None:
    """Print the table, and how the served fusion differs from the others. The intervals in the table are left out if
    the screen is too narrow."""
    shown = table(report)
    screen.print(shown if shown.fits(screen.width) else table(report, narrow=True))
    names = [row.name for row in report.rows if row.served]
    served = [gap for gap in report.differences if gap.name in names]
    for line in report_lines(report.model_copy(update={"differences": served})):
        screen.say(line)


def figure(row: Row, name: str) -> str:
    """Return a figure of the row as text; empty if the row lacks it."""
    return number(row.scores[name], name) if name in row.scores else ""


def interval(row: Row, name: str) -> str:
    """Return the interval of a figure as text; empty if the row lacks it."""
    if name not in row.intervals:
        return ""
    low, high = row.intervals[name]
    return f"[{number(low, name)}, {number(high, name)}]"


def report_lines(report: EvaluationReport) -> list[str]:
    """Return the differences in sentences, and the signatures of the metrics."""
    differences = [
        f"{gap.name} over the {gap.over}: {number(gap.value, gap.metric, '+')} {HEADINGS[gap.metric]}, 95% of "
        f"resamples in [{number(gap.low, gap.metric, '+')}, {number(gap.high, gap.metric, '+')}], p = {gap.p:.3f}"
        for gap in report.differences
    ]
    return differences + [f"{HEADINGS[name]}: {said}" for name, said in report.signatures.items()]


def number(value: float, name: str, sign: str = "") -> str:
    """Return the figure called `name` as text: four decimals, or two of a percentage."""
    digits = 2 if name in PERCENT else 4
    return (
        f"{round(value, digits) + 0.0:{sign}.{digits}f}"  # adding 0 takes the sign off a rounded -0
    )

"""The table of an evaluation in terminals of several widths."""

import io
import re

import pytest

from serve.terminal.screen import Screen
from training.evaluation.scores import Difference, EvaluationReport, Row
from training.evaluation.tables import show


class Terminal(io.StringIO):
    """A terminal that keeps what is shown."""

    def isatty(self) -> bool:
        return True


def shown(monkeypatch: pytest.MonkeyPatch, report: EvaluationReport, width: int) -> str:
    """What a terminal of that many columns shows."""
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setattr("sys.stdout", terminal := Terminal())
    show(report, Screen())
    return re.sub(r"\x1b\[[0-9;]*m", "", terminal.getvalue())


WRITTEN = {
    "exact_match": (0.0512, "0.0512"),
    "token_f1": (0.7831, "0.7831"),
    "bleu": (66.97, "66.97"),
    "chrf": (73.04, "73.04"),
    "rougeL": (0.77418, "0.7742"),
    "meteor_exact_stem": (0.7815, "0.7815"),
}
CLASSES = {
    "accuracy": (0.9217, "0.9217"),
    "macro_f1": (0.9203, "0.9203"),
    "log_loss": (0.2711, "0.2711"),
    "ece": (0.0425, "0.0425"),
}


@pytest.mark.parametrize(
    ("figures", "main", "width", "interval"),
    [
        (WRITTEN, "bleu", 80, None),
        (WRITTEN, "bleu", 140, "66.97 [60.82, 72.67]"),
        (CLASSES, "accuracy", 70, None),
        (CLASSES, "accuracy", 140, "0.9217 [0.9000, 0.9450]"),
    ],
)
def test_every_figure_is_whole(
    monkeypatch: pytest.MonkeyPatch,
    figures: dict[str, tuple[float, str]],
    main: str,
    width: int,
    interval: str | None,
) -> None:
    scores = {name: value for name, (value, _) in figures.items()}
    bounds = {"bleu": (60.82, 72.67), "accuracy": (0.9, 0.945)}
    names = {"kind": "fusion", "passes": 4, "scores": scores, "intervals": {main: bounds[main]}}
    row = Row(name="weighted_average", served=True, **names)
    difference = Difference(
        name="weighted_average", over="mean member", metric=main, value=1.2, low=-1, high=3, p=0.4
    )
    report = EvaluationReport(
        ensemble="replies@1", data="test", count=100, rows=[row], differences=[difference]
    )
    whole = shown(monkeypatch, report, width)
    table = whole.partition("over the mean member")[0]
    assert "weighted_average  served" in table
    assert max(map(len, whole.splitlines())) <= width
    assert "…" not in table
    for _, text in figures.values():
        assert f" {text} " in table
    assert (interval in table) if interval else ("[" not in table)


def test_a_file_name_with_brackets_is_no_markup(monkeypatch: pytest.MonkeyPatch) -> None:
    row = Row(name="a", kind="member", passes=1, served=True, scores={"accuracy": 0.5})
    report = EvaluationReport(ensemble="topics@1", data="[/old].csv", count=9, rows=[row])
    assert "topics@1 on 9 [/old].csv rows" in shown(monkeypatch, report, 120)

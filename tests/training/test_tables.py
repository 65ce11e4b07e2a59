"""What an evaluation shows in terminals of several widths."""

import io

import pytest
from rich.console import Console

from training.scores import Difference, Report, Row
from training.tables import figure, interval, show

WRITTEN = {
    "exact_match": 0.0512,
    "token_f1": 0.7831,
    "bleu": 66.97,
    "chrf": 73.04,
    "rougeL": 0.7742,
    "meteor_exact_stem": 0.7815,
}
CLASSES = {"accuracy": 0.9217, "macro_f1": 0.9203, "log_loss": 0.2711, "ece": 0.0425}


@pytest.mark.parametrize(
    ("scores", "main"), [(WRITTEN, "bleu"), (CLASSES, "accuracy")], ids=["generation", "classes"]
)
@pytest.mark.parametrize("width", [80, 90, 140])
def test_every_figure_is_whole(scores: dict[str, float], main: str, width: int) -> None:
    names = {"kind": "fusion", "passes": 4, "scores": scores, "intervals": {main: (0.6082, 0.7267)}}
    row = Row(name="weighted_average", served=True, **names)
    difference = Difference(
        name="weighted_average", over="mean member", metric=main, value=1.2, low=-1, high=3, p=0.4
    )
    report = Report(
        ensemble="replies@1", data="test", count=100, rows=[row], differences=[difference]
    )
    screen = io.StringIO()
    show(report, Console(file=screen, width=width))
    shown = screen.getvalue()
    assert "…" not in shown
    for name in scores:
        assert f" {figure(row, name)} " in shown
    assert (interval(row, main) in shown) or width < 140

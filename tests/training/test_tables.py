"""What an evaluation shows in terminals of several widths."""

import io

import pytest
from rich.console import Console

from training.scores import Difference, Report, Row
from training.tables import show

SCORES = {
    "exact_match": 0.0512,
    "token_f1": 0.7831,
    "bleu": 66.97,
    "chrf": 73.04,
    "rougeL": 0.7742,
    "meteor_exact_stem": 0.7815,
}
FIGURES = ["0.0512", "0.7831", "66.97", "73.04", "0.7742", "0.7815"]


@pytest.mark.parametrize(("width", "has_interval"), [(80, False), (140, True)])
def test_every_figure_is_whole(width: int, has_interval: bool) -> None:
    names = {"kind": "fusion", "passes": 4, "scores": SCORES, "intervals": {"bleu": (60.82, 72.67)}}
    row = Row(name="weighted_average", served=True, **names)
    difference = Difference(
        name="weighted_average", over="mean member", metric="bleu", value=1.2, low=-1, high=3, p=0.4
    )
    report = Report(
        ensemble="replies@1", data="test", count=100, rows=[row], differences=[difference]
    )
    screen = io.StringIO()
    show(report, Console(file=screen, width=width))
    shown = screen.getvalue()
    for figure in FIGURES:
        assert f" {figure} " in shown
    assert ("[60.82, 72.67]" in shown) is has_interval

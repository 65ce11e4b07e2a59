"""The leaderboard on a terminal of 80 columns and in a pipe."""

import io
import re
from pathlib import Path

import pytest

from serve.terminal.screen import Screen
from training.leaderboard.board import Behind, Leaderboard, Rung, RungKind
from training.leaderboard.table import show_board


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def rung(name: str, kind: RungKind, passes: float, milliseconds: float | None) -> Rung:
    return Rung(
        name=name,
        kind=kind,
        passes=passes,
        milliseconds=milliseconds,
        scores={"log_loss": 0.2614, "accuracy": 0.9381, "ece": 0.0083},
        intervals={},
        validation={},
        behind_best=Behind(difference=0.0123, interval=(0.01, 0.02), p=0.004),
    )


BOARD = Leaderboard(
    ensemble="intents",
    metric="log_loss",
    rows=3080,
    recommended="average-early",
    reason="On 498 validation rows, average-early is the best rung.",
    rungs=[
        rung("merged-dare_ties_svd", "distilled", 1, 121.4),
        rung("average-early", "fusion", 2.3456, 250.0),
        rung("vote", "fusion", 6, None).model_copy(update={"behind_best": None}),
    ],
)


@pytest.mark.parametrize("file", [Terminal(), io.StringIO()])
def test_the_board_fits_and_ends_in_the_command_that_serves_the_recommendation(
    file: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"COLUMNS": "80", "TERM": "xterm", "NO_COLOR": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("sys.stdout", file)
    show_board(BOARD, Path("bundle"), Screen())
    shown = re.sub(r"\x1b\[\d+m", "", file.getvalue())
    title, head, _, *rungs = shown.splitlines()
    assert title.startswith("intents: 3,080 rows")
    assert "log loss" in head
    assert head.split()[-1] == "p"
    if file.isatty():
        assert all(len(line) <= 80 for line in [title, head, *rungs[:3]])
    else:
        assert "ECE" in head, "a pipe has room for all figures"
    assert rungs[0].split()[:3] == ["merged-dare_ties_svd", "distilled", "1"]
    assert rungs[1].split()[:4] == ["average-early*", "fusion", "2.35", "250"]
    assert "0.004" not in rungs[2], "a vote has no log loss, and no difference in it"
    assert "Serve average-early. On 498 validation rows" in shown
    assert "With abstaining" not in shown
    command = "choir swap intents --manifest bundle/rungs/intents/average-early.json"
    assert rungs[-1] == command


@pytest.mark.parametrize(
    ("coverage", "said"),
    [
        (0.868, "it gives 86.8% of its answers, of which 1.68% are wrong"),
        (0.0, "too few validation rows"),
    ],
)
def test_what_abstaining_leaves_of_the_recommended_rung_is_said(
    coverage: float, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = io.StringIO()
    monkeypatch.setattr("sys.stdout", out)
    scores = {**BOARD.rungs[1].scores, "coverage": coverage, "risk": 0.0168}
    chosen = BOARD.rungs[1].model_copy(update={"scores": scores})
    board = BOARD.model_copy(update={"rungs": [BOARD.rungs[0], chosen]})
    show_board(board, Path("bundle"), Screen())
    assert said in out.getvalue()

"""The table of progress, where it is no terminal: a line for what is finished, and for what was when it all ended."""

import io

import pytest
from rich.console import Console

from training.board import Board


def lines(board: Board) -> list[str]:
    file = board.console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue().splitlines()


@pytest.fixture
def board() -> Board:
    return Board(Console(file=io.StringIO(), width=120))


def test_a_row_is_printed_once_when_its_work_is_finished(board: Board) -> None:
    with board:
        board.expect("topics/a")
        board.begin("topics/a", 4)
        for done in range(1, 5):
            board.reach("topics/a", done, 1 / done)
        assert lines(board) == []
        board.end("topics/a")
        board.end("topics/a")
        [line] = lines(board)
    assert line.split()[:2] == ["topics/a", "done"]
    assert "4/4" in line
    assert line.rstrip().endswith("loss 0.250")
    assert lines(board) == [line]


def test_what_was_not_finished_is_told_at_the_end_and_what_never_began_is_not(board: Board) -> None:
    with board:
        board.expect("topics/waits")
        board.begin("topics/a", 4)
        board.reach("topics/a", 1)
    [line] = lines(board)
    assert line.split()[:2] == ["topics/a", "running"]
    assert "1/4" in line


def test_work_that_is_begun_anew_starts_where_it_says(board: Board) -> None:
    """As a task does whose process died."""
    with board:
        board.begin("topics/a", 8)
        board.reach("topics/a", 7, 0.5)
        board.begin("topics/a", 8, 4)
        board.end("topics/a")
    [line] = lines(board)
    assert "4/8" in line
    assert "loss" not in line

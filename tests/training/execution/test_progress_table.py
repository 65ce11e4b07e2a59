"""The progress table without a terminal: lines for running and for finished rows."""

import io
import time

import pytest
from rich.console import Console

from training.execution.progress_table import ProgressTable


def lines(progress_table: ProgressTable) -> list[str]:
    file = progress_table.console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue().splitlines()


@pytest.fixture
def progress_table() -> ProgressTable:
    return ProgressTable(Console(file=io.StringIO(), width=120))


def test_a_row_is_printed_once_when_its_work_is_finished(progress_table: ProgressTable) -> None:
    with progress_table:
        progress_table.expect("topics/a")
        progress_table.begin("topics/a", 4)
        for done in range(1, 5):
            progress_table.reach("topics/a", done, 1 / done)
        assert lines(progress_table) == []
        progress_table.end("topics/a")
        progress_table.end("topics/a")
        [line] = lines(progress_table)
    assert line.split()[:2] == ["topics/a", "done"]
    assert "4/4" in line
    assert line.rstrip().endswith("loss 0.250")
    assert lines(progress_table) == [line]


def test_unfinished_rows_are_printed_at_the_end_and_waiting_rows_are_not(
    progress_table: ProgressTable,
) -> None:
    with progress_table:
        progress_table.expect("topics/waits")
        progress_table.begin("topics/a", 4)
        progress_table.reach("topics/a", 1)
    [line] = lines(progress_table)
    assert line.split()[:2] == ["topics/a", "running"]
    assert "1/4" in line


def test_restarted_work_starts_at_the_reported_step(progress_table: ProgressTable) -> None:
    """A task restarts after its process died."""
    with progress_table:
        progress_table.begin("topics/a", 8)
        progress_table.reach("topics/a", 7, 0.5)
        progress_table.begin("topics/a", 8, 4)
        progress_table.end("topics/a")
    [line] = lines(progress_table)
    assert "4/8" in line
    assert "loss" not in line


def test_running_rows_are_printed_repeatedly_until_the_end() -> None:
    progress_table = ProgressTable(Console(file=io.StringIO(), width=120), every=0.05)
    with progress_table:
        progress_table.expect("topics/waits")
        progress_table.begin("topics/a", 4)
        progress_table.reach("topics/a", 1, 0.5)
        wait_for_lines(progress_table, 1)
        progress_table.reach("topics/a", 3, 0.25)
        wait_for_lines(progress_table, len(lines(progress_table)) + 2)
    told = lines(progress_table)
    assert {tuple(line.split()[:2]) for line in told} == {("topics/a", "running")}
    assert "1/4" in told[0]
    assert "3/4" in told[-1]
    time.sleep(0.2)
    assert lines(progress_table) == told


def wait_for_lines(progress_table: ProgressTable, count: int) -> None:
    until = time.monotonic() + 20
    while len(lines(progress_table)) < count:
        assert time.monotonic() < until
        time.sleep(0.01)


def test_a_log_shows_a_row_whole(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    title = "intents-of-customers/member-with-a-name: learning_rate 0.001234, rank 16"
    with ProgressTable() as progress_table:
        progress_table.begin(title, 10000)
        progress_table.reach(title, 9999, 0.25)
        progress_table.end(title)
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{title} done")
    assert line.rstrip().endswith("loss 0.250")


def test_a_width_that_was_asked_for_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "70")
    assert ProgressTable().console.width == 70


def test_text_with_brackets_is_no_markup(progress_table: ProgressTable) -> None:
    """A search may try values with brackets, such as an `init`."""
    title = "topics/a: init [/INST] [bold]"
    with progress_table:
        progress_table.begin(title, 4)
        progress_table.end(title)
    [line] = lines(progress_table)
    assert line.startswith(title)

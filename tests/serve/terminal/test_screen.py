"""Lines and tables on a terminal of 80 columns and in a pipe."""

import io
import re

import pytest
from rich.cells import cell_len

from serve.terminal.screen import Screen
from serve.terminal.sheet import Column, Sheet, number, whole

AT, ACTOR = "2026-11-29T16:09:05Z", "alice@example.org"
REASON = "the gates did not pass: the agreement was 0.31 and at least 0.9 was asked for"
PATH = "/" + "x" * 90


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _eighty_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")


def _screen(file: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> Screen:
    monkeypatch.setattr("sys.stdout", file)
    return Screen()


@pytest.fixture(params=["terminal", "pipe"])
def anywhere(request: pytest.FixtureRequest) -> io.StringIO:
    return _Terminal() if request.param == "terminal" else io.StringIO()


def _audit(reason: str = REASON) -> Sheet:
    sheet = Sheet(
        "[latest] changes",
        [whole("at"), whole("who"), number("version"), Column("reason"), Column("note")],
    )
    sheet.add_row(AT, ACTOR, "12", reason, "a b [bold] c")
    sheet.add_row(AT, ACTOR, "7", "", None)
    return sheet


def _words(text: str) -> list[str]:
    return sorted(text.split())


class TestTables:
    def test_a_terminal_wraps_by_word_and_cuts_nothing(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        file = _Terminal()
        _screen(file, monkeypatch).print(_audit())

        lines = [line for line in _plain(file).split("\n") if "─" not in line]
        assert max(cell_len(line) for line in lines) <= 80
        said = _words("\n".join(lines))
        for word in [AT, ACTOR, "12", *REASON.split(), "[bold]", "[latest]"]:
            assert word in said
        assert said.count(AT) == 2

    def test_a_row_is_one_whole_line_in_a_pipe(self, monkeypatch: pytest.MonkeyPatch) -> None:
        file = io.StringIO()
        _screen(file, monkeypatch).print(_audit())

        lines = file.getvalue().splitlines()
        assert len(lines) == 5
        assert lines[0] == "[latest] changes"
        assert re.split(r"  +", lines[3]) == [AT, ACTOR, "12", REASON, "a b [bold] c"]
        assert lines[4] == f"{AT}  {ACTOR}        7"
        assert "\x1b" not in file.getvalue()

    def test_rows_become_lists_when_the_longest_words_do_not_fit(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        file = _Terminal()
        _screen(file, monkeypatch).print(_audit(PATH))

        lines = _plain(file).splitlines()
        assert f"reason   {PATH}" in lines
        assert f"at       {AT}" in lines
        assert lines.count("") == 1

    def test_numbers_end_at_the_same_column(
        self, anywhere: io.StringIO, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        sheet = Sheet(None, [Column("name"), number("rows")])
        sheet.add_row("a", "7")
        sheet.add_row("日本語", "1,200")
        _screen(anywhere, monkeypatch).print(sheet)

        _, _, *rows = _plain(anywhere).splitlines()
        assert [cell_len(row) for row in rows] == [13, 13]

    def test_a_row_has_as_many_cells_as_there_are_columns(self) -> None:
        with pytest.raises(ValueError, match="1 cells for 2 columns"):
            Sheet(None, [Column("a"), Column("b")]).add_row("x")


class TestLines:
    def test_a_sentence_wraps_by_word_on_a_terminal(self, monkeypatch: pytest.MonkeyPatch) -> None:
        file = _Terminal()
        _screen(file, monkeypatch).say(f"  {REASON}, and {PATH} says [more] about it")

        lines = file.getvalue().splitlines()
        assert all(line.startswith("  ") for line in lines)
        assert f"  {PATH}" in lines
        assert all(cell_len(line) <= 80 for line in lines if PATH not in line)
        assert "[more]" in file.getvalue()

    def test_a_sentence_is_one_line_in_a_pipe(self, monkeypatch: pytest.MonkeyPatch) -> None:
        file = io.StringIO()
        _screen(file, monkeypatch).say(f"{REASON} {PATH} {REASON}")

        assert file.getvalue() == f"{REASON} {PATH} {REASON}\n"

    def test_what_is_to_be_copied_is_one_line_everywhere(
        self, anywhere: io.StringIO, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        _screen(anywhere, monkeypatch).verbatim(f"choir swap {REASON} {PATH}")

        assert anywhere.getvalue() == f"choir swap {REASON} {PATH}\n"


def _plain(file: io.StringIO) -> str:
    """Return what was printed, without the codes for bold."""
    return re.sub(r"\x1b\[[0-9;]*m", "", file.getvalue())

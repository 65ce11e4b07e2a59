"""What an operator sees: lines in a pipe, a bar on a terminal, and nothing of the libraries below."""

import io
import subprocess
import sys
from pathlib import Path

from rich.console import Console as Terminal

from serve.graph.console import ASIDE, Console
from serve.logs.events import Event, EventKind


def event(kind: EventKind, message: str, done: int = 0, total: int = 0) -> Event:
    return Event("2026-01-01T12:00:00.000+00:00", "engine-0", kind, message, done, total)


START = [
    event("phase", "Loading the base"),
    event("phase", "Proving adapter", 0, 6),
    event("phase", "Proving adapter", 1, 6),
    event("started", "engine-0 is ready after 31 s."),
]


def test_in_a_pipe_each_phase_is_a_line() -> None:
    out = io.StringIO()
    console = Console(out, engines=1)
    with console.starting():
        console.phase("Starting Ray")
        console.show(START)
        console.ready("Choir answers on http://127.0.0.1:8000")
    assert out.getvalue().splitlines() == [
        "Starting Ray",
        "Loading the base",
        "Proving adapter 1 of 6",
        "engine-0 is ready after 31 s.",
        "Choir answers on http://127.0.0.1:8000",
    ]


def test_with_several_engines_each_phase_names_its_own() -> None:
    out = io.StringIO()
    Console(out, engines=2).show(START[:1])
    assert out.getvalue() == "engine-0: Loading the base\n"


def test_on_a_terminal_a_bar_shows_how_far_it_is() -> None:
    out = io.StringIO()
    console = Console(out, engines=1)
    console._terminal = console._bar.live.console = Terminal(file=out, force_terminal=True)
    with console.starting():
        console.show(START[:3])
        console._bar.refresh()
        assert "Proving adapter 2 of 6" in out.getvalue()
    task = console._bar.tasks[0]
    assert (task.completed, task.total) == (1, 6)


def test_once_it_answers_lines_have_their_time_and_starts_are_told_too() -> None:
    out = io.StringIO()
    console = Console(out, engines=1)
    console.ready("Choir answers.")
    console.show([event("swap", "[a] is live."), event("phase", "Warming up"), START[3]])
    _, swapped, started = out.getvalue().splitlines()
    assert swapped.startswith("2026-01-01 ")
    assert swapped.endswith("[a] is live.")
    assert started.endswith("engine-0 is ready after 31 s.")


def test_only_the_console_writes_to_the_terminal_meanwhile(tmp_path: Path) -> None:
    """Whoever writes, also below Python; afterwards everybody may."""
    code = f"""
import os, sys, warnings
from pathlib import Path
from serve.graph.console import only_console
with only_console(Path({str(tmp_path)!r})) as out:
    print("python")
    warnings.warn("python", DeprecationWarning)
    os.write(2, b"\\x1b[33m(raylet)\\x1b[0m below python\\n")
    print("the console", file=out)
print("afterwards")
"""
    done = subprocess.run(
        [sys.executable, "-W", "always", "-c", code], capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == ("the console\nafterwards\n", "")
    aside = (tmp_path / ASIDE).read_text()
    assert "(raylet) below python" in aside
    assert "DeprecationWarning" in aside
    assert "\x1b" not in aside

"""What is shown while a canary or a shadow is waited for, on a terminal and in a pipe."""

import io
import itertools
import re
from typing import Any

import pytest

from choir_cli import waiting
from choir_cli.waiting import follow, progress
from choir_client import Choir, Rollout
from serve.terminal.screen import Screen


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def rollout(state: str, requests: int = 0, **counts: Any) -> Rollout:
    sides = {"candidate": {"requests": requests, "mean_ms": 52.0}, "stable": {"mean_ms": 50.0}}
    trial = {"share": 0.1, "gates": {"min_requests": 100}, **sides, **counts}
    return Rollout.model_validate({"id": "r1", "state": state, "trial": trial})


class Server(Choir):
    """Answers one state of a rollout after the other."""

    def __init__(self, *rollouts: Rollout) -> None:
        self._rollouts = iter(rollouts)

    def rollout(self, rollout_id: str) -> Rollout:
        return next(self._rollouts)


STEPS = [
    rollout("canarying"),
    rollout("canarying", 33, agreement=0.971),
    rollout("canarying", 66, agreement=0.98),
    rollout("committing", 100, agreement=0.98),
    rollout("draining", 100),
]


@pytest.fixture(autouse=True)
def _a_second_each_step(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = itertools.count(100.0, 6.0)
    monkeypatch.setattr(waiting, "monotonic", lambda: next(seconds))
    monkeypatch.setattr(waiting, "sleep", lambda _: None)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")


def followed(file: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr("sys.stdout", file)
    monkeypatch.setattr(waiting, "out", Screen())
    assert follow(Server(*STEPS), rollout("preparing")).state == "draining"
    return file.getvalue()


def test_a_pipe_gets_plain_lines_of_new_states_and_now_and_then_of_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert followed(io.StringIO(), monkeypatch).splitlines() == [
        "preparing: 6 s",
        "canarying: 12 s",
        "canarying: 66 of 100 requests, agreement 98.0%, 0 errors, latency 1.04x, 24 s",
        "committing: 100 of 100 requests, agreement 98.0%, 0 errors, latency 1.04x, 30 s",
    ]


def test_a_terminal_has_one_line_that_is_gone_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    written = followed(Terminal(), monkeypatch)
    for step in ("33 of 100 requests, agreement 97.1%", "66 of 100", "100 of 100"):
        assert step in written
    lines = [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", each) for each in re.split(r"[\r\n]", written)]
    assert max(map(len, lines)) <= 80
    up_and_erase = "\x1b[1A\x1b[2K"
    assert written.rstrip("\r").endswith(up_and_erase) or written.endswith("\x1b[2K")


def test_errors_and_a_shadow_without_a_comparison_are_shown() -> None:
    trial = rollout("shadowing", 40, candidate={"requests": 40, "errors": 1}, stable={})
    assert progress(trial, 3.4) == "shadowing: 40 of 100 requests, 1 error, 3 s"


def test_a_wait_that_is_broken_off_says_that_the_rollout_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    pipe = io.StringIO()
    monkeypatch.setattr("sys.stdout", pipe)
    monkeypatch.setattr(waiting, "out", Screen())
    monkeypatch.setattr(waiting, "sleep", interrupt)
    with pytest.raises(KeyboardInterrupt):
        follow(Server(), rollout("canarying"))
    assert pipe.getvalue().endswith(
        "The rollout goes on without this command. To end it:\n  choir abort r1\n"
    )

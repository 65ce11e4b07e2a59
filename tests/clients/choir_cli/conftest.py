"""The `choir` command as a user runs it, and answers of a server for it."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from choir_cli import main

DIGEST = "sha256:" + "ab" * 32
ENSEMBLE = {
    "name": "intents",
    "active_version": 3,
    "versions": [{"version": 1}, {"version": 3}],
    "members": [{"name": "a", "adapters": [{"adapter": "intents-a", "digest": DIGEST}]}],
    "rollout": None,
}
ROLLOUT = {
    "id": "r1",
    "ensemble": "intents",
    "state": "done",
    "from": 3,
    "to": 4,
    "replicas": 1,
    "reason": None,
}


@dataclass
class Ran:
    status: int
    out: str
    err: str


Choir = Callable[..., Ran]


@pytest.fixture
def choir(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Choir:
    """`choir("status")` runs the command as the installed script would."""
    monkeypatch.setenv("COLUMNS", "200")

    def run(*args: str) -> Ran:
        monkeypatch.setattr("sys.argv", ["choir", *args])
        with pytest.raises(SystemExit) as ended:
            main.run()
        captured = capsys.readouterr()
        return Ran(int(ended.value.code or 0), captured.out, captured.err)

    return run

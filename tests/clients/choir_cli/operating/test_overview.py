"""The tables of `choir status` and `choir rollouts` on a terminal of 80 columns and in a pipe."""

import io

import pytest

from choir_cli.operating import overview
from choir_client import AuditEntry, EnsembleStatus, Health, Rollout
from serve.terminal.screen import Screen

AT, ACTOR = "2026-11-29T16:10:02Z", "no token, from 127.0.0.1"
URI = "s3://models/adapters/of/the/team/that/answers/mail/intents-a"
REASON = (
    "the candidate agreed with the active version in 31.0% of 100 requests, and 90.0% was asked for"
)
CHANGE = {
    "ensemble": "intents",
    "from": 3,
    "to": 4,
    "actor": ACTOR,
    "uris": {"a": [URI]},
    "reason": REASON,
}
ENSEMBLE = {
    "name": "intents",
    "active_version": 3,
    "versions": [{"version": 3}],
    "members": [
        {
            "name": "a",
            "adapters": [
                {
                    "adapter": "intents-a",
                    "digest": "sha256:" + "ab" * 32,
                    "uri": URI,
                    "swapped_by": ACTOR,
                    "swapped_at": "2026-11-29T16:10:02.123+00:00",
                }
            ],
        }
    ],
}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(params=["terminal", "pipe"])
def anywhere(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    file = Terminal() if request.param == "terminal" else io.StringIO()
    for name, value in (("COLUMNS", "80"), ("TERM", "xterm"), ("NO_COLOR", "1")):
        monkeypatch.setenv(name, value)
    return file


def show(table: str) -> None:
    if table == "status":
        status = EnsembleStatus.model_validate(ENSEMBLE)
        overview.show_status("http://choir", Health(ok=True), "1.2.3", [status])
    elif table == "rollouts":
        more = {"id": "4c645fc2364b", "state": "aborted", "created": AT}
        overview.show_rollouts([Rollout.model_validate(CHANGE | more)])
    else:
        more = {"at": AT, "action": "swap", "outcome": "aborted"}
        overview.show_audit([AuditEntry.model_validate(CHANGE | more)])


@pytest.mark.parametrize("table", ["status", "rollouts", "audit"])
def test_no_time_actor_or_uri_is_cut(
    anywhere: io.StringIO, table: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdout", anywhere)
    monkeypatch.setattr(overview, "out", Screen())
    show(table)
    lines = [
        line.replace("\x1b[2m", "").replace("\x1b[0m", "")
        for line in anywhere.getvalue().splitlines()
    ]
    said = " ".join(" ".join(lines).split())
    assert AT in said
    assert URI in said
    if table != "status":
        assert all(word in said for word in REASON.split())
    if isinstance(anywhere, Terminal):
        assert max(map(len, lines)) <= 80
        assert ACTOR in said
    else:
        assert "\x1b" not in anywhere.getvalue()
        [row] = [line for line in lines if AT in line]
        assert ACTOR in row
        assert URI in row


def test_the_pool_is_shown_where_a_server_has_several(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(overview, "out", Screen())
    mail = EnsembleStatus.model_validate(ENSEMBLE | {"pool": "mail"})
    chat = EnsembleStatus.model_validate(ENSEMBLE | {"name": "replies", "pool": "chat"})
    overview.show_status("http://choir", Health(ok=True), None, [mail])
    assert "pool" not in capsys.readouterr().out
    overview.show_status("http://choir", Health(ok=True), None, [mail, chat])
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("pool", "mail", "chat"))

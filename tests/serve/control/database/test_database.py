"""The durable state behaves the same on SQLite and on PostgreSQL."""

import contextlib
import os
import socket
import sqlite3
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from serve.control.clock import now
from serve.control.database.comparison import Conflict, TakenOver
from serve.control.database.connection import DatabaseError
from serve.control.database.database import Database
from serve.control.records import VersionRecord
from serve.control.rollout.state import NextStep, Rollout, State
from serve.manifest import Ensemble
from tests.serve.databases import PostgresServer
from tests.serve.fakes import PATIENCE
from tests.serve.gateway.fakes import ensemble

AT = "2026-01-01T00:00:00.000+00:00"


def version(number: int, **fields: Any) -> VersionRecord:
    return VersionRecord(ensemble(version=number), "ada", AT, **fields)


def rollout(to: int, name: str = "r") -> Rollout:
    return Rollout(f"{name}{to}", "intents", 1, to, "swap", "ada", AT, AT)


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    database = Database.open(database_url)
    database.add_ensemble("intents", 1, [version(1)], "choir")
    yield database
    database.close()


def commit(database: Database, to: int) -> int:
    """Swap to a new version, up to draining."""
    record = database.ensembles()["intents"]
    change = replace(rollout(to), from_version=record.active)
    database.begin(change, version(to))
    change.advance(NextStep(State.COMMITTING), now())
    epoch = database.commit(change, record, record.history_after_swap())
    change.advance(NextStep(State.DRAINING), now())
    database.advanced(change)
    return epoch


def test_the_next_incarnation_reads_what_was_written(database_url: str) -> None:
    first = Database.open(database_url)
    manifest = ensemble().model_copy(update={"labels": ["café ☕", "a\nb", "'; DROP TABLE audit"]})
    record = VersionRecord(manifest, "bundle:/b", AT, "f" * 64, True)
    first.add_ensemble("intents", 3, [record], "choir")
    first.close()

    second = Database.open(database_url)
    assert (first.incarnation, second.incarnation) == (1, 2)
    found = second.ensembles()["intents"]
    assert found.versions == {3: record}
    assert (found.active, found.epoch, found.previous) == (3, 0, ())
    second.close()


def test_a_commit_changes_the_active_version_its_history_and_the_audit(database: Database) -> None:
    assert [commit(database, to) for to in (2, 3)] == [1, 2]
    found = database.ensembles()["intents"]
    assert (found.active, found.epoch, found.previous) == (3, 2, (1, 2))
    assert [found.versions[number].left for number in (1, 2, 3)] == [1, 2, None]
    latest = database.audit()[0]
    assert (latest.actor, latest.action, latest.ensemble) == ("ada", "swap", "intents")
    assert (latest.from_version, latest.to_version, latest.outcome) == (2, 3, "committed")
    assert [each.outcome for each in database.audit()] == ["committed", "committed", "done"]


def test_only_one_of_several_commits_from_one_version_wins(
    database: Database,
) -> None:
    record = database.ensembles()["intents"]
    change = rollout(2)
    database.begin(change, version(2))
    change.advance(NextStep(State.COMMITTING), now())
    ready = threading.Barrier(6)

    def run(_: int) -> int | Conflict:
        ready.wait()
        try:
            return database.commit(change, record, (1,))
        except Conflict as conflict:
            return conflict

    with ThreadPoolExecutor(6) as pool:
        results = list(pool.map(run, range(6)))

    losers = [result for result in results if isinstance(result, Conflict)]
    assert len(losers) == 5
    found = database.ensembles()["intents"]
    assert (found.active, found.epoch) == (2, 1)
    assert all("not at version 1" in str(loser) for loser in losers)
    assert [each.outcome for each in database.audit()].count("committed") == 1


def test_an_earlier_incarnation_can_change_nothing_any_more(
    database: Database, database_url: str
) -> None:
    """A trial that the later server has ended stays ended, whether the earlier one writes at once or late."""
    record = database.ensembles()["intents"]
    trial = rollout(2)
    database.begin(trial, version(2))
    trial.advance(NextStep(State.CANARYING), now())
    database.advanced(trial)
    later = Database.open(database_url)
    finished = replace(trial)
    finished.advance(NextStep(State.COMMITTING), now())
    later.commit(finished, record, (1,))

    decided = replace(trial, decision="promote", decided_by="bob")
    committing = replace(trial)
    committing.advance(NextStep(State.COMMITTING), now())
    for write in (
        lambda: database.begin(rollout(3), version(3)),
        lambda: database.advanced(trial),
        lambda: database.decided(decided),
        lambda: database.commit(committing, record, (1,)),
        lambda: database.refused("eve", "swap", record, "no", {}),
        lambda: database.add_versions([version(9)], "choir"),
        lambda: database.add_ensemble("tone", 1, [], "choir"),
    ):
        with pytest.raises(TakenOver, match="taken this store over"):
            write()
    assert [each.state for each in later.rollouts()] == [State.COMMITTING]
    assert set(later.ensembles()) == {"intents"}
    assert set(later.ensembles()["intents"].versions) == {1, 2}
    assert [each.outcome for each in later.audit()] == ["committed", "done"]
    later.close()


def test_no_write_takes_a_rollout_back(database: Database) -> None:
    commit(database, 2)
    change = database.rollouts()[0]
    for state in (State.PREPARING, State.CANARYING, State.ABORTED):
        with pytest.raises(Conflict, match="cannot become"):
            database.advanced(replace(change, state=state))
    with pytest.raises(Conflict, match="cannot become"):
        database.decided(replace(change, state=State.CANARYING, decision="abort", decided_by="bob"))
    change.advance(NextStep(State.DONE), now())
    for _ in range(2):  # one that is written again is no second event
        database.advanced(change)
    assert [each.outcome for each in database.audit()] == ["done", "committed", "done"]


def test_one_rollout_of_an_ensemble_begins_at_a_time_and_from_what_is_active(
    database: Database,
) -> None:
    database.begin(rollout(2), version(2))
    with pytest.raises(Conflict, match="r2 of intents has not ended"):
        database.begin(rollout(3), version(3))
    aborted = rollout(2)
    aborted.advance(NextStep(State.ABORTED, "no", 400), now())
    database.advanced(aborted)
    commit(database, 3)
    with pytest.raises(Conflict, match="not at version 1 any more"):
        database.begin(rollout(4), version(4))
    assert set(database.ensembles()["intents"].versions) == {1, 2, 3}


def test_a_commit_needs_the_rollouts_first_version_to_be_active(database: Database) -> None:
    """An old rollout must not commit again a version that is active already."""
    change = rollout(2)
    database.begin(change, version(2))
    change.advance(NextStep(State.COMMITTING), now())
    first = database.ensembles()["intents"]
    database.commit(change, first, (1,))
    with pytest.raises(Conflict, match="not at version 1 any more"):
        database.commit(change, database.ensembles()["intents"], (1, 2))
    assert database.ensembles()["intents"].previous == (1,)


def test_servers_that_start_at_once_get_their_own_incarnations(database_url: str) -> None:
    with ThreadPoolExecutor(6) as pool:
        opened = list(pool.map(Database.open, [database_url] * 6))
    assert sorted(each.incarnation for each in opened) == [1, 2, 3, 4, 5, 6]
    for each in opened:
        each.close()


def test_a_new_store_waits_for_a_server_that_makes_it(tmp_path: Path) -> None:
    path = tmp_path / "choir.db"
    with contextlib.closing(
        sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    ) as other:
        other.execute("BEGIN IMMEDIATE")
        end = threading.Timer(0.5, other.execute, ["COMMIT"])
        end.start()
        Database.open(f"sqlite:///{path}").close()
        end.join()


class LostConnection(sa.exc.OperationalError):
    def __init__(self) -> None:
        super().__init__("COMMIT", {}, psycopg.OperationalError("server closed the connection"))


@pytest.mark.parametrize("written", [True, False])
@pytest.mark.parametrize("write", ["begin", "commit"])
def test_a_connection_lost_at_the_commit_leaves_no_doubt(
    database: Database, monkeypatch: pytest.MonkeyPatch, write: str, written: bool
) -> None:
    """The outcome is asked of the database, even if it is away for a while."""
    dialect = database._engine.dialect
    do_commit, do_begin = dialect.do_commit, dialect.do_begin
    away = 0

    def lose(connection: Any) -> None:
        nonlocal away
        if written:
            do_commit(connection)
        away = 2
        monkeypatch.setattr(dialect, "do_commit", do_commit)
        raise LostConnection

    def begin(connection: Any) -> None:
        nonlocal away
        if away:
            away -= 1
            raise LostConnection
        do_begin(connection)

    record = database.ensembles()["intents"]
    change = rollout(2)
    if write == "commit":
        database.begin(change, version(2))
        change.advance(NextStep(State.COMMITTING), now())
    monkeypatch.setattr("serve.control.database.writer.RETRY_SECONDS", 0.0)
    monkeypatch.setattr(dialect, "do_begin", begin)
    monkeypatch.setattr(dialect, "do_commit", lose)

    def run() -> int | None:
        if write == "begin":
            return database.begin(change, version(2))
        return database.commit(change, record, (1,))

    if written:
        assert run() == (1 if write == "commit" else None)
    else:
        with pytest.raises(DatabaseError, match="closed the connection"):
            run()
    assert away == 0
    found = database.ensembles()["intents"]
    assert found.active == (2 if written and write == "commit" else 1)
    assert (2 in found.versions) == (written or write == "commit")
    assert len(database.rollouts()) == int(written or write == "commit")


def test_a_commit_under_way_when_the_connection_is_lost_is_waited_for(
    postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PostgreSQL carries out a commit whose client is gone. Until then its outcome is unknown."""
    database = Database.open(postgres.new_database())
    database.add_ensemble("intents", 1, [version(1)], "choir")
    change = rollout(2)
    database.begin(change, version(2))
    change.advance(NextStep(State.COMMITTING), now())
    name = database._engine.url.database
    assert name is not None
    monkeypatch.setattr("serve.control.database.writer.RETRY_SECONDS", 0.0)
    with postgres.connect(name) as other, ThreadPoolExecutor(1) as pool:
        other.execute("SELECT pg_advisory_lock(1)")
        other.execute(
            "CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS "
            "'BEGIN PERFORM pg_advisory_xact_lock_shared(1); RETURN NULL; END'"
        )
        other.execute(
            "CREATE CONSTRAINT TRIGGER slow AFTER UPDATE ON ensembles DEFERRABLE INITIALLY DEFERRED "
            "FOR EACH ROW EXECUTE FUNCTION wait()"
        )
        opened: list[Any] = []
        sa.event.listen(database._engine, "checkout", lambda each, *_: opened.append(each))
        record = database.ensembles()["intents"]
        epoch = pool.submit(database.commit, change, record, (1,))
        wait_for(other, "wait_event_type = 'Lock' AND query = 'COMMIT'")
        broken = socket.socket(fileno=os.dup(opened[-1].fileno()))
        broken.shutdown(socket.SHUT_RDWR)
        broken.close()
        wait_for(other, "wait_event_type = 'Lock' AND query LIKE '%FOR UPDATE%'")
        assert not epoch.done()
        other.execute("SELECT pg_advisory_unlock(1)")
        assert epoch.result() == 1
    assert database.ensembles()["intents"].active == 2
    assert database.rollouts()[0].state == State.COMMITTING
    database.close()


def wait_for(connection: "psycopg.Connection[Any]", activity: str) -> None:
    """Wait until a connection to this database meets the condition on pg_stat_activity."""
    query = (
        f"SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND {activity}"
    )
    until = time.monotonic() + PATIENCE
    while connection.execute(query).fetchone() == (0,):  # type: ignore[arg-type]
        assert time.monotonic() < until, activity
        time.sleep(0.005)


def test_a_transaction_that_fails_leaves_nothing_behind(database: Database) -> None:
    with pytest.raises(DatabaseError):
        database.begin(rollout(2), version(1))  # version 1 exists
    assert database.rollouts() == []
    assert set(database.ensembles()["intents"].versions) == {1}


def test_reading_waits_for_no_writer(database: Database) -> None:
    def write(session: Session) -> None:
        session.execute(sa.text("UPDATE ensembles SET active = 7"))
        assert database.ensembles()["intents"].active == 1
        assert database.rollouts() == database.unfinished() == []
        assert database.rollout("r2") is None
        assert len(database.audit()) == 1

    database._writer.write(write)
    assert database.ensembles()["intents"].active == 7


def test_reasons_and_rollouts_are_kept_as_they_were(database: Database) -> None:
    change = rollout(2)
    database.begin(change, version(2))
    change.replicas = {"engine/0": "failed: ☹ 'quoted' \\ back"}
    change.advance(NextStep(State.ABORTED, "it is too large", 400), AT)
    database.advanced(change)
    found = database.rollout("r2")
    assert found == replace(change, status=found.status if found else 400)
    record = database.ensembles()["intents"]
    database.refused("eve", "swap", record, "no\0thing", {"a": ["file:///a\0b"]})
    latest = database.audit()[0]
    assert (latest.outcome, latest.from_version, latest.to_version) == ("refused", 1, None)
    assert latest.reason == "no?thing"


def test_a_manifest_survives_exactly(database: Database) -> None:
    weights = [0.1 + 0.2, 1e-300]
    members = [
        member.model_copy(update={"weight": weight})
        for member, weight in zip(ensemble().members, weights, strict=True)
    ]
    manifest: Ensemble = ensemble(version=2).model_copy(update={"members": members})
    database.begin(rollout(2), replace(version(2), ensemble=manifest))
    assert database.ensembles()["intents"].versions[2].ensemble == manifest


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("mysql://root:hunter2@db/choir", "'mysql' is not served"),
        ("hunter2", "cannot be read"),
        ("postgresql://choir:hunter2@db:port/choir", "cannot be read"),
        ("postgresql://choir:hunter2@127.0.0.1:1/choir", "cannot be opened"),
        ("postgresql+asyncpg://choir:hunter2@db/choir", "not served"),
        ("sqlite:////does/not/exist/choir.db", "cannot be opened"),
    ],
)
def test_a_database_that_cannot_be_used_is_said_without_its_password(url: str, says: str) -> None:
    with pytest.raises(DatabaseError, match=says) as caught:
        Database.open(url)
    assert "hunter2" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_driver_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "psycopg", None)
    with pytest.raises(DatabaseError, match=r"choir-serve\[postgres\]"):
        Database.open("postgresql://choir@db/choir")


def test_sqlite_keeps_what_is_committed_through_a_crash(tmp_path: Path) -> None:
    database = Database.open(f"sqlite:///{tmp_path / 'choir.db'}")
    with database._engine.connect() as connection:
        pragmas = [
            connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys")
        ]
    assert pragmas == ["wal", 2, 1]
    database.close()

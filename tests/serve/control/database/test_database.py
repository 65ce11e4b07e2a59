"""The durable state, the same on SQLite and on PostgreSQL."""

import contextlib
import sqlite3
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa

from serve.control.clock import now
from serve.control.database.database import Conflict, Database, DatabaseError
from serve.control.records import VersionRecord
from serve.control.rollout.state import Rollout, State, Step
from serve.manifest import Ensemble
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
    """Swap to a new version, all in one go."""
    change = rollout(to)
    record = database.ensembles()["intents"]
    database.begin(change, version(to))
    change.advance(Step(State.COMMITTING), now())
    return database.commit(change, record, record.history_after_swap())


def test_what_was_written_is_read_again_in_another_life(database_url: str) -> None:
    first = Database.open(database_url)
    manifest = ensemble().model_copy(update={"labels": ["café ☕", "a\nb", "'; DROP TABLE audit"]})
    record = VersionRecord(manifest, "bundle:/b", AT, "f" * 64, True)
    first.add_ensemble("intents", 3, [record], "choir")
    first.close()

    second = Database.open(database_url)
    assert (first.life, second.life) == (1, 2)
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
    assert (latest.from_version, latest.to_version, latest.outcome) == (1, 3, "committed")
    assert [each.outcome for each in database.audit()] == ["committed", "committed", "done"]


def test_of_commits_from_one_version_one_wins_and_the_others_change_nothing(
    database: Database,
) -> None:
    record = database.ensembles()["intents"]
    changes = [rollout(to) for to in range(2, 8)]
    for change in changes:
        database.begin(change, version(change.to_version))
        change.advance(Step(State.COMMITTING), now())
    ready = threading.Barrier(len(changes))

    def run(change: Rollout) -> int | Conflict:
        ready.wait()
        try:
            return database.commit(change, record, (1,))
        except Conflict as conflict:
            return conflict

    with ThreadPoolExecutor(len(changes)) as pool:
        results = list(pool.map(run, changes))

    winners = [c for c, r in zip(changes, results, strict=True) if not isinstance(r, Conflict)]
    assert len(winners) == 1
    found = database.ensembles()["intents"]
    assert (found.active, found.epoch) == (winners[0].to_version, 1)
    assert all("not at version 1" in str(r) for r in results if isinstance(r, Conflict))
    assert [each.outcome for each in database.audit()].count("committed") == 1
    assert {each.id for each in database.unfinished()} == {each.id for each in changes}


def test_an_earlier_life_can_change_nothing_any_more(database: Database, database_url: str) -> None:
    later = Database.open(database_url)
    with pytest.raises(Conflict, match="taken this store over"):
        database.begin(rollout(2), version(2))
    assert later.rollouts() == []
    later.close()


def test_servers_that_start_at_once_get_lives_of_their_own(database_url: str) -> None:
    with ThreadPoolExecutor(6) as pool:
        opened = list(pool.map(Database.open, [database_url] * 6))
    assert sorted(each.life for each in opened) == [1, 2, 3, 4, 5, 6]
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


def test_a_store_of_another_version_of_choir_is_left_alone(database_url: str) -> None:
    database = Database.open(database_url)
    with database._engine.begin() as connection:
        connection.execute(sa.text("UPDATE control SET schema_version = 99"))
    database.close()
    with pytest.raises(DatabaseError, match="another version of Choir"):
        Database.open(database_url)


class LostConnection(sa.exc.OperationalError):
    def __init__(self) -> None:
        super().__init__("COMMIT", {}, psycopg.OperationalError("server closed the connection"))


@pytest.mark.parametrize("written", [True, False])
def test_a_connection_lost_at_the_commit_leaves_no_doubt(
    database: Database, monkeypatch: pytest.MonkeyPatch, written: bool
) -> None:
    """Whether the database had written it is asked of the database, also when that is away for a while."""
    dialect = database._engine.dialect
    do_commit = dialect.do_commit
    failures = 3

    def lose(connection: Any) -> None:
        nonlocal failures
        failures -= 1
        if failures < 0:
            do_commit(connection)
            return
        if failures == 2 and written:
            do_commit(connection)
        raise LostConnection

    record = database.ensembles()["intents"]
    change = rollout(2)
    database.begin(change, version(2))
    change.advance(Step(State.COMMITTING), now())
    monkeypatch.setattr("serve.control.database.database.RETRY_SECONDS", 0.0)
    monkeypatch.setattr(dialect, "do_commit", lose)
    if written:
        assert database.commit(change, record, (1,)) == 1
    else:
        with pytest.raises(DatabaseError, match="closed the connection"):
            database.commit(change, record, (1,))
    assert database.ensembles()["intents"].active == (2 if written else 1)


def test_a_transaction_that_fails_leaves_nothing_behind(database: Database) -> None:
    with pytest.raises(DatabaseError):
        database.begin(rollout(2), version(1))  # version 1 exists
    assert database.rollouts() == []
    assert set(database.ensembles()["intents"].versions) == {1}


def test_reading_waits_for_no_writer(database: Database) -> None:
    with database._transaction() as writer:
        writer.execute(sa.text("UPDATE ensembles SET active = 7"))
        assert database.ensembles()["intents"].active == 1
        assert database.rollouts() == database.unfinished() == []
        assert database.rollout("r2") is None
        assert len(database.audit()) == 1


def test_reasons_and_rollouts_are_kept_as_they_were(database: Database) -> None:
    change = rollout(2)
    database.begin(change, version(2))
    change.replicas = {"engine/0": "failed: ☹ 'quoted' \\ back"}
    change.advance(Step(State.ABORTED, "it is too large", 400), AT)
    database.advanced(change)
    found = database.rollout("r2")
    assert found == replace(change, status=found.status if found else 400)
    record = database.ensembles()["intents"]
    database.refused("eve", "swap", record, "no\0thing")
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

"""A store of an earlier version of Choir is opened and upgraded, on SQLite and on PostgreSQL."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from serve.control.database.connection import DatabaseError, connect
from serve.control.database.database import Database
from serve.control.database.tables import Table
from serve.control.origins import Origin
from serve.control.rollout.state import Rollout, State
from serve.protocol.figures import Figures, Tally
from tests.serve.world import database_url, postgres

__all__ = ["database_url", "postgres"]

STORES = Path(__file__).with_name("stores")
AT = "2026-12-03T00:00:00.000+00:00"
EARLIER = ["release_0_2_0", "schema_2", "schema_3"]


def write_store(url: str, name: str) -> None:
    """Write a store as an earlier version of Choir did."""
    dump = (STORES / f"{name}.sql").read_text(encoding="utf-8")
    engine = connect(url)
    with engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            for table, second in (("rollouts", "id"), ("audit", "at")):
                column = f"number INTEGER NOT NULL,\n    {second} "
                assert column in dump
                dump = dump.replace(column, column.replace("INTEGER", "SERIAL"))
                dump += f"SELECT setval('{table}_number_seq', 100);\n"
        for statement in dump.split(";\n"):
            if statement.strip():
                connection.exec_driver_sql(statement)
    engine.dispose()


def contents(url: str) -> dict[str, Any]:
    """Table -> its columns and rows, as they are in the database."""
    engine = connect(url)
    with engine.begin() as connection:
        inspector = sa.inspect(connection)
        found = {
            table: (
                [column["name"] for column in inspector.get_columns(table)],
                [repr(row) for row in connection.execute(sa.text(f"SELECT * FROM {table}"))],
            )
            for table in inspector.get_table_names()
        }
    engine.dispose()
    return found


@pytest.mark.parametrize("earlier", [*EARLIER, None])
def test_the_migrated_tables_are_those_of_the_models(
    database_url: str, earlier: str | None
) -> None:
    if earlier is not None:
        write_store(database_url, earlier)
    Database.open(database_url).close()

    engine = connect(database_url)
    with engine.begin() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Table.metadata) == []
    engine.dispose()


@pytest.mark.parametrize("earlier", ["release_0_2_0", "schema_3"])
def test_what_an_earlier_version_wrote_is_read(database_url: str, earlier: str) -> None:
    write_store(database_url, earlier)

    database = Database.open(database_url)

    assert database.incarnation == 2
    ensembles = database.ensembles()
    record = ensembles["intents"]
    assert (record.active, record.epoch, record.previous) == (1, 2, ())
    assert {number: each.left for number, each in record.versions.items()} == {1: 1, 2: 2, 3: None}
    assert record.versions[2].fitted_on == {
        "a": ["sha256:" + "a" * 64],
        "b": ["sha256:" + "b" * 64],
    }
    assert [each.weight for each in record.versions[2].ensemble.members] == [0.25, 0.75]
    stacked = ensembles["tone"].versions[1]
    assert (stacked.parameters, stacked.allow_stale_fusion) == ("f" * 64, True)
    assert [each.outcome for each in database.audit()] == [
        *("done", "committed", "refused", "done", "committed", "done", "done")
    ]
    assert database.audit()[2].reason == (
        "The adapter for member 'a' is refused: it isn't 'safe'; no."
    )
    (canary,) = database.unfinished()
    assert (canary.state, canary.candidate) == (State.CANARYING, "intents@3")
    assert canary.strategy.gates.min_agreement == 0.9
    assert canary.figures == {
        "gateway-process": Figures(Tally(7, 1, 0.5), Tally(21, 0, 1.25), 7, 6.5)
    }
    database.close()


def test_origins_that_were_not_recorded_are_recovered_as_far_as_they_are_known(
    database_url: str,
) -> None:
    write_store(database_url, "schema_2")

    database = Database.open(database_url)

    record = database.ensembles()["intents"]
    from_bundle = {
        name: (Origin(f"file:///data/bundle/adapters/intents-{name}/{name * 12}"),)
        for name in ("a", "b")
    }
    assert record.versions[1].origins == from_bundle
    swapped = (Origin(None, "admin@127.0.0.1", "2026-01-02T00:00:00.000+00:00"),)
    assert record.versions[2].origins == from_bundle | {"a": swapped}
    assert [(each.outcome, each.uris) for each in database.audit()] == [
        *(("refused", {}), ("done", {}), ("committed", {}), ("done", {}))
    ]
    assert [(each.id, each.uris) for each in database.rollouts()] == [("r2", {})]
    database.close()


@pytest.mark.parametrize("earlier", EARLIER)
def test_an_upgraded_store_takes_new_changes_and_is_not_upgraded_twice(
    database_url: str, earlier: str
) -> None:
    write_store(database_url, earlier)
    database = Database.open(database_url)
    uris = {"a": ["file:///data/b"]}
    for rollout in database.unfinished():
        database.advanced(_aborted(rollout))
    active = database.ensembles()["intents"].active
    again_active = Rollout("r3", "intents", active, 3 - active, "swap", "ann", AT, AT, uris=uris)
    database.begin(again_active, None)
    database.refused("ann", "swap", database.ensembles()["intents"], "no", {"a": ["file:///a"]})
    before = database.ensembles()
    database.close()

    again = Database.open(database_url)

    assert again.ensembles() == before
    assert again.rollouts()[0].uris == uris
    assert again.audit()[0].uris == {"a": ["file:///a"]}
    again.close()


def _aborted(rollout: Rollout) -> Rollout:
    rollout.state = State.ABORTED
    return rollout


@pytest.mark.parametrize("earlier", [None, "release_0_2_0"])
def test_servers_that_start_at_once_upgrade_a_store_once(
    database_url: str, earlier: str | None
) -> None:
    if earlier is not None:
        write_store(database_url, earlier)

    with ThreadPoolExecutor(4) as pool:
        opened = list(pool.map(Database.open, [database_url] * 4))

    first = 1 if earlier is None else 2
    assert sorted(each.incarnation for each in opened) == [*range(first, first + 4)]
    for each in opened:
        each.close()


def test_an_upgrade_that_fails_leaves_the_store_as_it_was(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_store(database_url, "release_0_2_0")
    before = contents(database_url)
    with monkeypatch.context() as patch:
        patch.setattr("alembic.op.execute", lambda *_: 1 / 0)  # after tables and columns are added

        with pytest.raises(DatabaseError, match="left as they were: ZeroDivisionError"):
            Database.open(database_url)

    assert contents(database_url) == before
    Database.open(database_url).close()
    assert contents(database_url) != before


def test_a_store_of_a_newer_choir_is_refused_and_left_alone(database_url: str) -> None:
    Database.open(database_url).close()
    _run(database_url, "UPDATE alembic_version SET version_num = '77'")
    before = contents(database_url)

    with pytest.raises(
        DatabaseError, match=r"newer version of Choir \(its tables are at revision 77"
    ):
        Database.open(database_url)

    assert contents(database_url) == before


def test_a_store_whose_tables_no_release_wrote_is_refused_and_left_alone(database_url: str) -> None:
    write_store(database_url, "schema_3")
    _run(database_url, "UPDATE control SET schema_version = 1")
    before = contents(database_url)

    with pytest.raises(DatabaseError, match="another version of Choir"):
        Database.open(database_url)

    assert contents(database_url) == before


def test_a_server_of_before_refuses_an_upgraded_store(database_url: str) -> None:
    """It compares this number with its own, which is 2 or 3."""
    write_store(database_url, "schema_3")
    Database.open(database_url).close()

    columns, (row,) = contents(database_url)["control"]
    assert "schema_version" in columns
    assert row.startswith("(1, 4,")


def _run(url: str, statement: str) -> None:
    engine = connect(url)
    with engine.begin() as connection:
        connection.exec_driver_sql(statement)
    engine.dispose()

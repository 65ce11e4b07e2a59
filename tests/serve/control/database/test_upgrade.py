"""A store of the release before is opened as it is, on SQLite and on PostgreSQL."""

from pathlib import Path

import sqlalchemy as sa

from serve.control.database.connection import connect
from serve.control.database.database import Database
from serve.control.origins import Origin
from serve.control.rollout.state import Rollout
from tests.serve.world import database_url, postgres

__all__ = ["database_url", "postgres"]

DUMP = Path(__file__).with_name("schema_2.sql")
AT = "2026-01-03T00:00:00.000+00:00"
NUMBERED = ("audit", "rollouts")


def write_schema_2(url: str) -> None:
    """Write the store as the release before did."""
    engine = connect(url)
    dump = DUMP.read_text(encoding="utf-8")
    postgresql = engine.dialect.name == "postgresql"
    if postgresql:
        dump = dump.replace("number INTEGER NOT NULL", "number SERIAL NOT NULL")
    statements = [each.strip() for each in dump.split(";\n")]
    # Ensembles first: other tables refer to them.
    statements.sort(key=lambda each: '"ensembles"' not in each and "TABLE ensembles" not in each)
    with engine.begin() as connection:
        for statement in filter(None, statements):
            connection.exec_driver_sql(statement)
        for table in NUMBERED if postgresql else ():
            connection.exec_driver_sql(f"SELECT setval('{table}_number_seq', 100)")
    engine.dispose()


def test_a_store_of_the_release_before_is_upgraded_in_place(database_url: str) -> None:
    write_schema_2(database_url)

    database = Database.open(database_url)

    assert database.incarnation == 2
    record = database.ensembles()["intents"]
    assert (record.active, record.epoch, record.previous) == (2, 1, (1,))
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


def test_an_upgraded_store_takes_new_changes_and_is_not_upgraded_twice(database_url: str) -> None:
    write_schema_2(database_url)
    database = Database.open(database_url)
    uris = {"a": ["file:///data/b"]}
    back = Rollout("r3", "intents", 2, 1, "swap", "ann", AT, AT, uris=uris)
    database.begin(back, None)
    database.refused("ann", "swap", database.ensembles()["intents"], "no", {"a": ["file:///a"]})
    before = database.ensembles()
    database.close()

    again = Database.open(database_url)

    assert again.ensembles() == before
    assert again.rollouts()[0].uris == uris
    assert again.audit()[0].uris == {"a": ["file:///a"]}
    again.close()


def test_the_upgrade_has_the_columns_of_a_new_store(database_url: str, tmp_path: Path) -> None:
    new = f"sqlite:///{tmp_path / 'new.db'}"
    write_schema_2(database_url)
    for url in (database_url, new):
        Database.open(url).close()

    def columns(url: str) -> dict[str, set[tuple[str, bool]]]:
        engine = connect(url)
        tables = sa.inspect(engine)
        found = {
            table: {(each["name"], each["nullable"]) for each in tables.get_columns(table)}
            for table in tables.get_table_names()
        }
        engine.dispose()
        return found

    assert columns(database_url) == columns(new)

"""Brings the tables of a database to the ones that this version of Choir reads, by the revisions in `migrations/`."""

import logging
from threading import Lock

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy.exc import SQLAlchemyError

from serve.control.database.connection import DatabaseError, reason

logger = logging.getLogger(__name__)

_ONE_AT_A_TIME = Lock()
"""What a migration calls is global in Alembic, so one process migrates one database at a time."""
OLDEST, LAST = 2, 3
"""The numbers that stores of before have, which Alembic did not keep. 2 is that of release 0.1.0."""


def migrate(connection: sa.Connection) -> None:
    """Create the tables of a new database, or change those of an earlier version of Choir. Keeps all rows.

    Runs in the transaction of `connection`, so that a migration that fails leaves the database as it was. Raises
    DatabaseError for a database of a newer version of Choir."""
    config = Config()
    config.set_main_option("script_location", f"{__package__}:migrations")
    config.attributes["connection"] = connection
    script = ScriptDirectory.from_config(config)
    with _ONE_AT_A_TIME:
        current = MigrationContext.configure(connection).get_current_revision()
        if current is None and (current := _without_alembic(connection)) is not None:
            command.stamp(config, current)
        _check_known(current, script)
        head = script.get_current_head()
        if current != head:
            try:
                command.upgrade(config, "head")
            except Exception as error:  # rows that a revision cannot read raise anything
                why = reason(error) if isinstance(error, SQLAlchemyError) else repr(error)
                raise DatabaseError(
                    f"The tables of the database could not be brought up to date, and are left as they were: {why}."
                ) from error
            if current is not None:
                logger.info(
                    "The database is upgraded: its tables were at %s and are at %s.", current, head
                )


def _without_alembic(connection: sa.Connection) -> str | None:
    """The revision of a database that Alembic has not kept so far, told by its tables; None for a new one. Raises
    DatabaseError."""
    tables = sa.inspect(connection)
    if not tables.has_table("control"):
        return None
    number = connection.scalar(sa.text("SELECT schema_version FROM control"))
    if number is not None and not OLDEST <= number <= LAST:
        raise DatabaseError(
            f"The store was written by another version of Choir (schema {number}; this version takes {OLDEST} to "
            f"{LAST} and what came after them); use that version, or another --store."
        )
    if any(column["name"] == "origins" for column in tables.get_columns("versions")):
        return "3"
    return "2" if tables.has_table("last_write") else "1"


def _check_known(current: str | None, script: ScriptDirectory) -> None:
    """Raises DatabaseError for a revision of a later version of Choir."""
    known = [revision.revision for revision in script.walk_revisions()]
    if current is not None and current not in known:
        raise DatabaseError(
            f"The store was written by a newer version of Choir (its tables are at revision {current}; this version "
            f"knows them up to {known[0]}); use that version or a newer one, or another --store."
        )

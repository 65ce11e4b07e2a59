"""Opens the database: SQLite in the store, or PostgreSQL by its URL."""

import sqlite3
import time
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.exc import SQLAlchemyError

from serve.errors import UserError

POSTGRES = ("postgres", "postgresql", "postgresql+psycopg")
CONNECT_SECONDS = 10
BUSY_SECONDS = 5
"""How long SQLite waits for another process that writes."""
OPENING = 0x63686F6972
"""Key of PostgreSQL's advisory lock under which tables are created and an incarnation begins: `choir`."""


class DatabaseError(UserError):
    """A state that cannot be read or written, in one sentence that holds no secret."""


READS = "reads"
"""Execution option of an engine whose transactions only read: they wait for no writer."""


def connect(url: str) -> sa.Engine:
    """An engine whose every transaction writes, unless it has the option `READS`, and waits for others for a bounded
    time only.

    Raises DatabaseError; nothing is connected yet."""
    try:
        parsed = sa.make_url(url)
    except (SQLAlchemyError, ValueError) as error:  # their texts repeat parts of the URL
        raise DatabaseError(
            "The database URL cannot be read; expected postgresql://user:password@host/name, with special characters "
            "in the password escaped (%40 for @)."
        ) from error
    if parsed.get_backend_name() == "sqlite":
        engine = sa.create_engine(parsed)
        event.listen(engine, "connect", _tune_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
        return engine
    if parsed.drivername not in POSTGRES:
        raise DatabaseError(
            f"The database {parsed.drivername!r} is not served; choose postgresql:// or sqlite:///."
        )
    try:
        engine = sa.create_engine(
            parsed.set(drivername="postgresql+psycopg"),
            # A database that was restarted is noticed before a transaction begins.
            pool_pre_ping=True,
            connect_args={"connect_timeout": CONNECT_SECONDS},
        )
    except ImportError as error:
        raise DatabaseError(
            "PostgreSQL needs a package that is not installed where the server runs: pip install "
            "'choir-serve[postgres]'."
        ) from error
    event.listen(engine, "begin", _begin_postgres)
    return engine


def open_alone(connection: sa.Connection) -> None:
    """Keep other servers that start now out until this transaction ends. SQLite does so by itself."""
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({OPENING})")


def reason(error: SQLAlchemyError) -> str:
    """Without the statement and its values, which SQLAlchemy adds."""
    text = str(getattr(error, "orig", None) or type(error).__name__)
    return " ".join(text.split()).rstrip(".")


def _tune_sqlite(connection: Any, _: object) -> None:
    """Who only reads never waits for the writer, and what is committed survives a crash. The driver leaves transactions
    to SQLAlchemy."""
    connection.isolation_level = None
    cursor = connection.cursor()
    for pragma in (f"busy_timeout={BUSY_SECONDS * 1000}", "synchronous=FULL", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    _switch_to_wal(cursor)
    cursor.close()


def _switch_to_wal(cursor: sqlite3.Cursor) -> None:
    """SQLite refuses this at once, whatever its busy_timeout, where another process does the same to a new file."""
    until = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            cursor.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > until:
                raise
            time.sleep(0.02)
        else:
            return


def _begin_sqlite(connection: sa.Connection) -> None:
    """One that reads before it writes would fail at once when another one has written in between, and so takes the lock
    first; one that only reads needs none."""
    reads = connection.get_execution_options().get(READS, False)
    connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")


def _begin_postgres(connection: sa.Connection) -> None:
    """A server that was paused in a transaction must not hold the next one up for ever."""
    connection.exec_driver_sql(
        "SELECT set_config('lock_timeout', '10s', true), set_config('statement_timeout', '30s', true), "
        "set_config('idle_in_transaction_session_timeout', '30s', true)"
    )

"""Connects to the database: SQLite in the store, or PostgreSQL by its URL."""

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
    """Why the database cannot be read or written, in one sentence without secrets."""


READS = "reads"
"""Execution option of an engine whose transactions only read. They wait for no writer."""


def connect(url: str) -> sa.Engine:
    """An SQLAlchemy engine for the database. Connects to nothing yet.

    Transactions are for writing, unless they have the option `READS`. They wait for others for a limited time. Raises
    DatabaseError."""
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
            # A restart of the database is noticed before a transaction begins.
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
    """Make other servers that start now wait until this transaction ends. SQLite does so by itself."""
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({OPENING})")


def reason(error: SQLAlchemyError) -> str:
    """The cause of an error, without the statement and the values that SQLAlchemy adds."""
    text = str(getattr(error, "orig", None) or type(error).__name__)
    return " ".join(text.split()).rstrip(".")


def _tune_sqlite(connection: Any, _: object) -> None:
    """Set up a connection: readers never wait for the writer, commits survive a crash, and SQLAlchemy (not the driver)
    begins transactions."""
    connection.isolation_level = None
    cursor = connection.cursor()
    for pragma in (f"busy_timeout={BUSY_SECONDS * 1000}", "synchronous=FULL", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    _switch_to_wal(cursor)
    cursor.close()


def _switch_to_wal(cursor: sqlite3.Cursor) -> None:
    """Switch to the write-ahead log. SQLite ignores busy_timeout here and fails at once while another process does the
    same to a new file, so this is tried again."""
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
    """Begin a transaction. One that writes takes the lock first: otherwise it would fail if another process wrote after
    its first read. One that only reads needs no lock."""
    reads = connection.get_execution_options().get(READS, False)
    connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")


def _begin_postgres(connection: sa.Connection) -> None:
    """Set timeouts, so that a server that is paused in a transaction does not block the next one for ever."""
    connection.exec_driver_sql(
        "SELECT set_config('lock_timeout', '10s', true), set_config('statement_timeout', '30s', true), "
        "set_config('idle_in_transaction_session_timeout', '30s', true)"
    )

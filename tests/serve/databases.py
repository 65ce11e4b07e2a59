"""A PostgreSQL server of the tests' own: an unprivileged user's, in a temporary folder, reached through a socket."""

import contextlib
import os
import pwd
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg

START_SECONDS = 60


def postgres_programs() -> Path | None:
    """The folder of `initdb` and `pg_ctl`; None where PostgreSQL is not installed."""
    on_path = shutil.which("initdb")
    if on_path:
        return Path(on_path).resolve().parent
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return installed[-1].parent if installed else None


class PostgresServer:
    """Gives each test a database of its own."""

    def __init__(self, socket_folder: Path) -> None:
        self._folder = socket_folder

    def new_database(self) -> str:
        """The URL of an empty database."""
        name = f"choir_{uuid.uuid4().hex[:12]}"
        with self.connect("postgres") as connection:
            connection.execute(f"CREATE DATABASE {name}")
        return f"postgresql://choir@/{name}?host={self._folder}"

    def connect(self, database: str) -> "psycopg.Connection[Any]":
        return psycopg.connect(
            host=str(self._folder), user="choir", dbname=database, autocommit=True
        )


@contextlib.contextmanager
def postgres_server(programs: Path) -> Iterator[PostgresServer]:
    """A running server; whatever keeps it from starting fails the test that asks for it."""
    # Not below pytest's own folder, which only its user can enter, and short: a socket's path has 107 bytes.
    folder = Path(tempfile.mkdtemp(prefix="choir-pg-"))
    user = _unprivileged_user()
    if user is not None:
        os.chown(folder, pwd.getpwnam(user).pw_uid, -1)

    def run(program: str, *arguments: str) -> None:
        done = subprocess.run(
            [str(programs / program), *arguments],
            user=user,
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=START_SECONDS,
        )
        log = folder / "log"
        said = log.read_text() if log.exists() else ""
        assert done.returncode == 0, f"{program}: {done.stdout}{done.stderr}{said}"

    data = str(folder / "data")
    try:
        run("initdb", "-D", data, "-U", "choir", "--auth=trust", "--no-sync", "-E", "UTF8")
        options = f"-c listen_addresses= -c unix_socket_directories={folder} -c fsync=off"
        run("pg_ctl", "start", "-w", "-D", data, "-l", str(folder / "log"), "-o", options)
        try:
            yield PostgresServer(folder)
        finally:
            run("pg_ctl", "stop", "-w", "-m", "immediate", "-D", data)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _unprivileged_user() -> str | None:
    """PostgreSQL does not run as root; None where the tests do not either."""
    if os.geteuid() != 0:
        return None
    return next(
        name for name in ("postgres", "nobody") if name in {u.pw_name for u in pwd.getpwall()}
    )

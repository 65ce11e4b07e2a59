"""Copies a store as it is at one moment, also while a server uses it. The copy is a store itself."""

import contextlib
import json
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from serve.digest import DigestError, file_digest, folder_digest
from serve.errors import UserError
from serve.files import no_folder

DATABASE = "choir.db"


class BackupError(UserError):
    """Why a store cannot be copied, in one sentence."""


@dataclass
class Copied:
    """What a copy has."""

    versions: int = 0
    adapters: int = 0
    bytes: int = 0
    lacking: list[str] = field(default_factory=list)
    """What the store names and does not have, or has changed: one sentence each."""


@dataclass(frozen=True)
class _Needed:
    """An adapter, or a file of fitted parameters."""

    digest: str
    version: str
    """The first version that needs it."""
    is_adapter: bool

    @property
    def place(self) -> Path:
        """Where it is below a store."""
        hexadecimal = self.digest.removeprefix("sha256:")
        return Path("artifacts" if self.is_adapter else "parameters") / hexadecimal


Track: TypeAlias = Callable[[Sequence[_Needed]], Iterable[_Needed]]


def copy_store(
    source: Path,
    target: Path,
    track: Track = iter,
) -> Copied:
    """Copy the store `source` to `target`, which must not exist: the database, and each file that a version in it
    needs, compared with its digest. `track` may show the progress.

    The database is copied first, by SQLite's own backup, and files never change. So the copy is whole even if a server
    swaps meanwhile. Raises BackupError, and leaves no `target` behind then."""
    database = source / DATABASE
    if not source.is_dir():
        raise BackupError(no_folder(source, source))
    if not database.is_file():
        raise BackupError(
            f"{source} has no {DATABASE}: either it is no store, or its state is in PostgreSQL. For that, take pg_dump "
            "first, and copy artifacts/ and parameters/ of the store afterwards."
        )
    if target.exists():
        raise BackupError(f"{target} exists already; name a folder that does not.")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=".new-", dir=target.parent))
        try:
            copied = _copy(source, draft, track)
            draft.chmod(0o755)
            draft.rename(target)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    except (OSError, sqlite3.Error) as error:
        raise BackupError(f"{source} cannot be copied to {target}: {error}.") from error
    return copied


def _copy(source: Path, target: Path, track: Track) -> Copied:
    copied = Copied()
    with contextlib.closing(sqlite3.connect(target / DATABASE)) as snapshot:
        with contextlib.closing(sqlite3.connect(source / DATABASE)) as live:
            live.backup(snapshot)
        rows = snapshot.execute("SELECT ensemble, version, manifest, parameters FROM versions")
        versions = rows.fetchall()
        # One file that needs no others beside it. A server that opens it switches back.
        snapshot.execute("PRAGMA journal_mode=DELETE")
    for name in ("artifacts", "parameters"):
        (target / name).mkdir()
    copied.versions = len(versions)
    for each in track(_needed(versions)):
        what = "the adapter" if each.is_adapter else "the fitted parameters"
        try:
            copied.bytes += _copy_one(each, source, target)
        except (DigestError, OSError) as error:
            copied.lacking.append(f"{each.version} needs {what} {each.digest}: {error}")
        else:
            copied.adapters += each.is_adapter
    return copied


def _needed(versions: Iterable[tuple[str, int, str, str | None]]) -> list[_Needed]:
    found: dict[str, _Needed] = {}
    for ensemble, number, manifest, parameters in versions:
        version = f"{ensemble}@{number}"
        for member in json.loads(manifest)["members"]:
            for ref in member.get("adapters", ()):
                found.setdefault(ref["digest"], _Needed(ref["digest"], version, True))
        if parameters is not None:
            found.setdefault(parameters, _Needed(parameters, version, False))
    return list(found.values())


def _copy_one(needed: _Needed, source: Path, target: Path) -> int:
    """Copy and compare. Returns the bytes. Raises DigestError and OSError, and leaves nothing behind then."""
    place = target / needed.place
    if needed.is_adapter:
        shutil.copytree(source / needed.place, place)
        found = folder_digest(place)
    else:
        shutil.copy2(source / needed.place, place)
        found = file_digest(place)
    if found != needed.digest:
        shutil.rmtree(place) if needed.is_adapter else place.unlink()
        raise DigestError(f"its files have changed, and have the digest {found} now")
    files = place.rglob("*") if needed.is_adapter else [place]
    return sum(file.stat().st_size for file in files if file.is_file())

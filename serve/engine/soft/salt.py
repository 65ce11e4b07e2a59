"""Which part of vLLM's prefix cache a request may read and fill: never that of other adapters.

vLLM keys its cache by token ids, LoRA and salt. Virtual tokens are placeholder ids there, the same for every adapter,
so the salt alone keeps soft adapters apart. A client's own `cache_salt` comes after the engine's, also for the plain
base, and can therefore never be taken for one of an adapter.
"""

from vllm.v1.request import Request

from serve.engine.soft.adapter import SoftAdapter


def own_salt(soft: SoftAdapter | None, lora: str | None) -> str | None:
    """The engine's part: kind and digest of each adapter; None for the plain base. `lora` is a digest."""
    parts = [f"{soft.kind}:{soft.digest}"] if soft else []
    parts += [f"lora:{lora}"] if lora else []
    return "+".join(parts) or None


def cache_salt(soft: SoftAdapter | None, lora: str | None, client: str | None) -> str | None:
    """The whole salt of a request; `client` is what the client sent."""
    own = own_salt(soft, lora)
    return f"{own or 'base'}/{client}" if client else own


def salted(request: Request, soft: SoftAdapter) -> bool:
    """Whether a request for a soft adapter carries the salt that belongs to it."""
    own = own_salt(soft, request.lora_request.lora_name if request.lora_request else None)
    engine_part, _, _ = (request.cache_salt or "").partition("/")
    return engine_part == own

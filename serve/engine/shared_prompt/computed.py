"""How many tokens the engine really computed for a request: without what it found in the cache, and with what it
computed again after a preemption."""

from typing import Any

from vllm.v1.request import Request

COMPUTED = "choir_computed"
"""Key in `kv_transfer_params` of a request's last output."""


def count(request: Request, tokens: int) -> None:
    """Counts tokens that the next step computes."""
    request.__dict__[COMPUTED] = computed_tokens(request) + tokens


def computed_tokens(request: Request) -> int:
    """Returns the tokens that were computed so far."""
    return int(request.__dict__.get(COMPUTED, 0))


def taken(output: Any) -> int:
    """Removes the number from a request's output in the front end, and returns it; 0 before the last output."""
    params = output.kv_transfer_params
    if not params or COMPUTED not in params:
        return 0
    output.kv_transfer_params = {k: v for k, v in params.items() if k != COMPUTED} or None
    return int(params[COMPUTED])

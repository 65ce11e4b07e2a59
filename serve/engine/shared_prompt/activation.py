"""What a request tells the scheduler and the workers about its activated LoRA: the invocation's tokens.

Each finds the place in the prompt itself, so that virtual tokens and truncation need no second account of it."""

from collections.abc import Sequence
from typing import Any

from vllm import SamplingParams
from vllm.v1.request import Request

from serve.prompting.invocation import Invocation, last_occurrence

_KEY = "choir_invocation"
_TOKENS = "tokens"
_BEHIND = "behind"
_START = "choir_start"

NEVER = 1 << 30
"""A start behind every prompt: without its invocation an adapter never acts, as in PEFT."""


def write_invocation(params: SamplingParams, invocation: Invocation, behind: int = 0) -> None:
    """Writes the invocation into the sampling parameters. `behind`: how many tokens at the request's end are an answer
    that is scored, in which no adapter begins to act."""
    own = {_TOKENS: list(invocation.tokens), _BEHIND: behind}
    params.extra_args = {**(params.extra_args or {}), _KEY: own}


def start_of(params: SamplingParams | None, prompt: Sequence[int] | None) -> int | None:
    """Returns the first position at which the request's adapter acts; None if it acts everywhere, or has none."""
    own: Any = params.extra_args.get(_KEY) if params is not None and params.extra_args else None
    if own is None or prompt is None:
        return None
    found = last_occurrence(prompt[: len(prompt) - own[_BEHIND]], own[_TOKENS])
    return NEVER if found is None else found


def request_start(request: Request) -> int | None:
    """Returns the same of a scheduler's request. Searches its prompt once."""
    known = request.__dict__
    if _START not in known:
        known[_START] = start_of(request.sampling_params, request.prompt_token_ids)
    start: int | None = known[_START]
    return start

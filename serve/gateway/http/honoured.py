"""Refuses the fields of vLLM's bodies that Choir knows and cannot honour."""

from collections.abc import Collection, Mapping
from typing import Any

from serve.errors import RefusedError

POOLING_DEFAULTS: Mapping[str, Collection[Any]] = {
    "messages": (None,),
    "add_special_tokens": (None, True),
    "truncate_prompt_tokens": (None,),
    "truncation_side": (None,),
    "padding": (None, "do_not_pad"),
    "priority": (None, 0),
    "mm_processor_kwargs": (None,),
    "cache_salt": (None,),
}
"""Field of vLLM's pooling routes -> the values with which a request is as Choir answers it."""


def check_honoured(body: Mapping[str, Any], defaults: Mapping[str, Collection[Any]]) -> None:
    """Raise RefusedError (400) if `body` sets one of the fields to another value than its defaults."""
    for name, same in defaults.items():
        if name in body and body[name] not in same:
            raise RefusedError(
                400, f"{name}: this route cannot do what it asks for; leave it out.", param=name
            )

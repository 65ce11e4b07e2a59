"""Turns pydantic's problems with a recipe into sentences for its author."""

import difflib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from training.recipe.base_stages import BASE_STAGES
from training.recipe.stages import STAGES

_STAGES: Mapping[str, type[BaseModel]] = dict([*STAGES.items(), *BASE_STAGES.items()])


def sentence(problem: Mapping[str, Any], content: Any, keys: Iterable[str]) -> str:
    """Describe one of pydantic's problems with `content`: where it is in the file, what is wrong and what was expected.

    `keys` are all keys of recipes; an unknown key gets the nearest of them as a hint.
    """
    loc, kind = problem["loc"], problem["type"]
    where = ".".join(_written(loc, content))
    message: str = problem["msg"].removeprefix("Value error, ")
    if not where:
        # A check of the whole recipe, whose message says itself what it is about.
        return message
    if kind == "extra_forbidden":
        return f"{where}: {_unknown(loc, keys)}"
    if kind == "missing":
        return f"{where}: this key is required"
    if kind == "model_type":
        return (
            f"{where}: this key takes keys of its own, as a mapping, and not {problem['input']!r}"
        )
    if kind == "union_tag_invalid":
        expected = problem["ctx"]["expected_tags"].replace("'", "")
        given = problem["ctx"]["tag"]
        return f"{where}: kind must be one of {expected} (got {given!r})"
    if isinstance(problem["input"], str | int | float):
        return f"{where}: {message[0].lower()}{message[1:]} (got {problem['input']!r})"
    return f"{where}: {message}"


def keys_of(models: Iterable[type[BaseModel]]) -> set[str]:
    """Return the keys of all `models`."""
    return {key for model in models for key in model.model_fields}


def _unknown(loc: tuple[str | int, ...], keys: Iterable[str]) -> str:
    key, within = str(loc[-1]), loc[-2] if len(loc) > 1 else None
    if within in _STAGES:
        kinds = [kind for kind, stage in _STAGES.items() if key in stage.model_fields]
        if kinds:
            return f"this key is for the kind {', '.join(kinds)}, not for {within}"
    close = difflib.get_close_matches(key, keys, n=1)
    return "unknown key" + (f", did you mean {close[0]}?" if close else "")


def _written(loc: tuple[str | int, ...], content: Any) -> Iterator[str]:
    """Yield the parts of `loc` that are in the file, and the missing key if one is missing. pydantic's `loc` also names
    the list and the kind of a member's only stage, which its author did not write."""
    for number, part in enumerate(loc, start=1):
        try:
            content = content[part]
        except (KeyError, IndexError, TypeError):
            if number < len(loc) or part in _STAGES or isinstance(part, int):
                continue
        yield str(part)

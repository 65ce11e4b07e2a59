"""What is wrong with a recipe, in sentences for its author."""

import difflib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from training.recipe.base_stages import BASE_STAGES
from training.recipe.stages import STAGES

_STAGES: Mapping[str, type[BaseModel]] = dict([*STAGES.items(), *BASE_STAGES.items()])


def sentence(problem: Mapping[str, Any], content: Any, keys: Iterable[str]) -> str:
    """One of pydantic's problems with `content`: where its author wrote it, what is wrong, and what was expected.

    `keys` are all keys that a recipe knows.
    """
    loc, kind = problem["loc"], problem["type"]
    where = ".".join(_written(loc, content)) or "recipe"
    message = problem["msg"].removeprefix("Value error, ")
    if kind == "extra_forbidden":
        return f"{where}: {_unknown(loc, keys)}"
    if kind == "missing":
        return f"{where}: this key is required"
    if kind == "union_tag_invalid":
        expected = problem["ctx"]["expected_tags"].replace("'", "")
        given = problem["ctx"]["tag"]
        return f"{where}: kind must be one of {expected} (got {given!r})"
    if isinstance(problem["input"], str | int | float):
        return f"{where}: {message[0].lower()}{message[1:]} (got {problem['input']!r})"
    return f"{where}: {message}"


def keys_of(models: Iterable[type[BaseModel]]) -> set[str]:
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
    """The parts of `loc` that stand in `content`, and a key that is missing there. A member's only stage is written
    without its list and its kind's tag."""
    for number, part in enumerate(loc, start=1):
        try:
            content = content[part]
        except (KeyError, IndexError, TypeError):
            if number < len(loc) or part in _STAGES or isinstance(part, int):
                continue
        yield str(part)

"""The engine arguments that a user may give, by vLLM's names. Checks them without importing vLLM, which takes long.

The names and types are read from vLLM's source: the fields of `EngineArgs` and `AsyncEngineArgs`."""

import ast
import difflib
import importlib.util
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from serve.errors import UserError

OWNED: Mapping[str, str] = {
    "model": "it is the bundle's base",
    "revision": "it is the bundle's base",
    "tokenizer": "it is the base's own, as in training and evaluation",
    "tokenizer_revision": "it is the base's own, as in training and evaluation",
    "skip_tokenizer_init": "prompts and labels are texts",
    "config_format": "the base is what its config.json says, as in training and evaluation",
    "hf_config_path": "the base is what its config.json says, as in training and evaluation",
    "served_model_name": "models are named after ensembles",
    "runner": "it follows from the kind of the base",
    "convert": "it follows from the kind of the base",
    "pooler_config": "each adapter's head says which vector of a text it reads",
    "enable_lora": "Choir serves adapters",
    "max_cpu_loras": "it is the setting host_adapters",
    "scheduler_cls": "Choir brings its own",
    "scheduling_policy": "members of an ensemble run together, in order of arrival",
    "logits_processors": "Choir brings its own, and others would change what it fuses",
    "data_parallel_size": "start several replicas instead, with --replicas",
    "worker_extension_cls": "Choir brings its own",
    "speculative_config": "neither label scoring nor token-level fusion can be combined with speculative decoding",
    "enable_batch_sharded_sampling": "token-level fusion needs all rows of a batch in one place",
    "trust_remote_code": "no code is ever loaded from a model folder",
    "load_format": "weights are read from safetensors only",
    "logprobs_mode": "scores are the model's own log-probabilities",
    "kv_transfer_config": "it loads prefix adapters",
    "kv_offloading_size": "it would replace the connector that loads prefix adapters",
    "reasoning_parser": "it is reasoning_parser in the setting chat",
    "enable_prompt_embeds": "embeddings come from verified adapters only, never from clients",
}

_SOURCE = "engine/arg_utils.py"
_CLASSES = ("EngineArgs", "AsyncEngineArgs")
_TYPES: Mapping[str, tuple[type, ...]] = {
    "int": (int,),
    "float": (int, float),
    "bool": (bool,),
    "str": (str,),
    "list": (list,),
    "set": (list,),
    "dict": (dict,),
    "None": (type(None),),
}
"""Types of Python -> types of JSON's values that stand for them."""
_WORDS: Mapping[str, str] = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "a text",
    "list": "a list",
    "set": "a list",
    "dict": "an object",
    "None": "null",
}


class EngineSettingError(UserError, ValueError):
    """An engine argument cannot be used; the message says why, for the person who starts the server."""


def check_given(given: Mapping[str, Any]) -> None:
    """Check the names of engine arguments, and their values as far as vLLM's source tells which ones it takes.

    Raises EngineSettingError for an argument that belongs to Choir or that vLLM does not have, and for a value of a
    type, or a word, that vLLM does not take."""
    known = _annotations()
    for name, value in given.items():
        if name in OWNED:
            raise EngineSettingError(
                f"The engine argument {name!r} belongs to Choir: {OWNED[name]}."
            )
        if name not in known:
            near = difflib.get_close_matches(name.replace("-", "_"), known, n=1)
            meant = f"; did you mean {near[0]!r}?" if near else "."
            raise EngineSettingError(
                f"vLLM has no engine argument {name!r}{meant} Names are those of vLLM's Python API, with underscores."
            )
        expected = list(_expected(known[name]))
        if expected and not any(_fits(value, each) for each in expected):
            wanted = " or ".join(dict.fromkeys(_WORDS.get(each, each) for each in expected))
            raise EngineSettingError(
                f"The engine argument {name!r} is {value!r}, and must be {wanted}."
            )


@cache
def _annotations() -> dict[str, ast.expr]:
    """Return the arguments that vLLM has, with their types."""
    tree = ast.parse((_folder() / _SOURCE).read_text(encoding="utf-8"))
    classes = [
        each for each in tree.body if isinstance(each, ast.ClassDef) and each.name in _CLASSES
    ]
    return {
        field.target.id: field.annotation
        for each in classes
        for field in each.body
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
    }


def _folder() -> Path:
    spec = importlib.util.find_spec("vllm")
    if spec is None or not spec.submodule_search_locations:
        raise EngineSettingError(
            "vLLM is not installed: see the README for which package to install."
        )
    return Path(spec.submodule_search_locations[0])


def _expected(annotation: ast.expr) -> Iterator[str]:
    """Yield the types and words that an argument takes: names of `_TYPES`, and words as JSON. Yields nothing if only
    vLLM knows."""
    parts = list(_parts(annotation))
    found: list[str] = []
    for part in parts:
        name = ast.unparse(part).partition("[")[0]
        if name in _TYPES:
            found.append(name)
        elif (words := _words(part)) is not None:
            found += [repr(word) for word in words]
        else:
            return
    yield from found


def _parts(annotation: ast.expr) -> Iterator[ast.expr]:
    if isinstance(annotation, ast.BinOp) and isinstance(annotation.op, ast.BitOr):
        yield from _parts(annotation.left)
        yield from _parts(annotation.right)
    elif isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
        yield from _parts(ast.parse(annotation.value, mode="eval").body)
    else:
        yield annotation


def _words(part: ast.expr) -> list[Any] | None:
    """Return the words of a `Literal`, or of a name that vLLM's configuration defines as one; None for anything
    else."""
    text = ast.unparse(part)
    if not text.startswith("Literal["):
        text = _definitions().get(text, "")
    try:
        words = ast.literal_eval(text.removeprefix("Literal")) if text else None
    except ValueError:
        return None
    return list(words) if words is not None else None


@cache
def _definitions() -> dict[str, str]:
    """Return the names that vLLM's configuration defines as a `Literal`."""
    found: dict[str, str] = {}
    for file in sorted((_folder() / "config").glob("*.py")):
        text = file.read_text(encoding="utf-8")
        for name, body in re.findall(
            r"^(\w+)(?:: TypeAlias)? = Literal(\[[^\]]*\])$", text, re.MULTILINE
        ):
            found[name] = f"Literal{body}"
    return found


def _fits(value: Any, expected: str) -> bool:
    if expected not in _TYPES:
        return repr(value) == expected
    if isinstance(value, bool) and expected != "bool":
        return False
    return isinstance(value, _TYPES[expected])

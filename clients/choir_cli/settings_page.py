"""Writes the page of all settings of a server from the code: `python -m choir_cli.settings_page`."""

import inspect
import json
import types
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import SecretStr
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined
from typer.models import ArgumentInfo

from choir_cli.serving import serve
from serve.bearer import Token
from serve.config.chat import ChatSettings
from serve.config.settings import Settings
from serve.config.sources import ENV_PREFIX
from training.recipe.reference import bounds

PAGE = Path("docs/settings.md")

NAMES = {
    "adapter_root": "adapter_roots",
    "adapter_prefix": "adapter_prefixes",
    "allowed_host": "allowed_hosts",
}
"""Options that are given once for each part of a list -> the setting."""

_INTRODUCTION = """\
# Settings

All settings of a server. [Operations](operations.md) explains the important ones. This page is written from the code
by `python -m choir_cli.settings_page`; change the descriptions in `serve/config/settings.py` and run it again.

A setting comes from its flag of `choir serve`, else from its variable, else from the file that `--config` names, else
it has its default. The file is YAML or JSON, and its keys are the names of the settings. In a variable, a list is
separated by commas or is JSON, and an object is JSON. An empty variable counts as unset.

```yaml
bundles: [bundle]
port: 8080
adapter_roots: [/data/adapters]
engine: {max_model_len: 2048}
log_level: warning
```

"""

_OTHERS = """
## Variables that are no settings

| variable | meaning |
|---|---|
| `CHOIR_URL`, `CHOIR_TOKEN` | Server and token of the commands that ask one, and of the Python client. |
| `CHOIR_HAPROXY` | `0` serves through Ray's Python proxy instead of HAProxy, which is slower. |
| `CHOIR_DEBUG` | `1` shows a trace instead of one sentence when a command fails. |
| `OMP_NUM_THREADS` | Threads of an engine on the CPU; by default the cores less one, shared among the engines. |
| `VLLM_LOGGING_LEVEL` | Least level of vLLM's lines in the log of an engine; `WARNING` by default. |
| `TMPDIR` | Where the folder of temporary files of a run is made; `/tmp` if the path is longer than 14 characters. |
"""

_PLAIN = {
    bool: "true or false",
    int: "whole number",
    float: "number",
    str: "text",
    SecretStr: "text, secret",
    Path: "path",
    Any: "anything",
    Token: "object",
}


def page() -> str:
    """Return the whole page as Markdown."""
    lines = [
        "| setting | flag | variable | value | default | meaning |",
        "|---|---|---|---|---|---|",
    ]
    for name, field in Settings.model_fields.items():
        cells = (
            f"`{name}`",
            _flag(name),
            f"`{ENV_PREFIX}{name.upper()}`",
            _kind(field.annotation) + bounds(field.metadata),
            _default(field),
            field.description or "",
        )
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return _INTRODUCTION + "\n".join(lines) + "\n" + _OTHERS


def flags() -> dict[str, str]:
    """Return the flag of each setting that has one: `--adapter-root`, or the name of an argument."""
    found = {}
    for name, parameter in inspect.signature(serve).parameters.items():
        declared = get_args(parameter.annotation)[1]
        argument = isinstance(declared, ArgumentInfo)
        found[NAMES.get(name, name)] = (
            declared.metavar if argument else f"--{name.replace('_', '-')}"
        )
    return found


def _flag(name: str) -> str:
    flag = flags().get(name)
    return f"`{flag}`" if flag else ""


def _kind(annotation: Any) -> str:
    """Return in words what may be given. None stands for a setting that is left out, and is not mentioned."""
    if annotation in _PLAIN:
        return _PLAIN[annotation]
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " or ".join(f"`{part}`" for part in parts)
    if origin in (Union, types.UnionType):
        return " or ".join(_kind(part) for part in parts if part is not type(None))
    if origin is tuple:
        return f"list of {_kind(parts[0])}"
    return "object"


def _default(field: FieldInfo) -> str:
    value = field.default
    if value is PydanticUndefined:
        return "required"
    if value is None or value in ((), {}, ChatSettings()):
        return ""
    return f"`{value if isinstance(value, str) else json.dumps(value)}`"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")

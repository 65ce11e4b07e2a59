"""Command-line values that are more than one word: NAME=VALUE pairs, JSON and small files."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from choir_cli.console import UsageError


def pairs(option: str, values: Sequence[str]) -> dict[str, str]:
    """`["a=x", "b=y"]` as a mapping, in order. Raises UsageError for a missing `=` and for a name
    given twice.
    """
    found: dict[str, str] = {}
    for value in values:
        name, equals, rest = value.partition("=")
        if not (name and equals and rest):
            raise UsageError(f"{option} takes NAME=VALUE, not {value!r}.")
        if name in found:
            raise UsageError(f"{option} gives {name!r} twice.")
        found[name] = rest
    return found


def several(option: str, values: Sequence[str]) -> dict[str, list[str]]:
    """`["a=x", "b=y", "a=z"]` as a mapping to lists, in order. Raises UsageError for a missing `=`."""
    found: dict[str, list[str]] = {}
    for value in values:
        for name, rest in pairs(option, [value]).items():
            found.setdefault(name, []).append(rest)
    return found


def numbers(option: str, values: Sequence[str]) -> dict[str, float]:
    """`["a=0.7"]` as a mapping to numbers."""
    try:
        return {name: float(value) for name, value in pairs(option, values).items()}
    except ValueError:
        raise UsageError(f"{option} takes NAME=NUMBER, not {', '.join(values)}.") from None


def json_object(option: str, text: str) -> dict[str, Any]:
    """A JSON object. Raises UsageError."""
    try:
        value = json.loads(text)
    except ValueError as error:
        raise UsageError(f"{option} is not JSON: {error}.") from None
    if not isinstance(value, dict):
        raise UsageError(f'{option} takes a JSON object such as {{"name": 1}}, not {text!r}.')
    return value


def read_text(path: Path) -> str:
    """Raises UsageError for a file that is not there or not UTF-8."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path} is not UTF-8 text.") from None


def read_labels(path: Path) -> list[str]:
    """Labels from a file with a JSON list, or with one label a line."""
    text = read_text(path)
    if not text.lstrip().startswith("["):
        return [line.strip() for line in text.splitlines() if line.strip()]
    try:
        labels = json.loads(text)
    except ValueError as error:
        raise UsageError(f"{path} is not JSON: {error}.") from None
    if not all(isinstance(label, str) for label in labels):
        raise UsageError(f"{path} must hold a list of texts.")
    return list(labels)


def read_verbalizers(path: Path) -> dict[str, str]:
    """What is scored for each label, from a file with a JSON object."""
    values = json_object(str(path), read_text(path))
    if not all(isinstance(value, str) for value in values.values()):
        raise UsageError(f"{path} must map each label to a text.")
    return values

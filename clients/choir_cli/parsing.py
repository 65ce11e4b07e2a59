"""Command-line values that are more than one word: NAME=VALUE pairs, JSON and small files."""

import json
import re
import unicodedata
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
    """The text of a file, without the byte order mark that some editors write.

    Raises UsageError for a file that is not there or not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path} is not UTF-8 text; save it as UTF-8.") from None


def read_labels(path: Path) -> list[str]:
    """Labels in their order: one a line, without space around them; or as JSON a list of texts, or an
    object with the labels by their numbers (`id2label`).

    Raises UsageError for a file that holds something else, such as a table.
    """
    text = read_text(path)
    try:
        content = json.loads(text)
    except ValueError as error:
        labels = _labels_by_line(path, text, error)
    else:
        labels = (
            _labels_of_json(path, content) if isinstance(content, list | dict) else [text.strip()]
        )
    same: dict[str, str] = {}
    for label in labels:
        spelled = unicodedata.normalize("NFC", label).strip()
        if spelled in same:
            raise UsageError(
                f"{path} holds {same[spelled]!a} and {label!a}, which are one label twice."
            )
        same[spelled] = label
    return labels


def _labels_of_json(path: Path, content: list[Any] | dict[str, Any]) -> list[str]:
    if isinstance(content, dict):
        numbers = [str(number) for number in range(len(content))]
        if set(content) != set(numbers):
            raise UsageError(
                f"{path} is a JSON object whose keys are not the numbers from 0 on; give the labels "
                "one a line, as a list, or by their numbers (id2label)."
            )
        content = [content[number] for number in numbers]
    if not all(isinstance(label, str) for label in content):
        raise UsageError(f"{path} must hold a list of texts.")
    return list(content)


def _labels_by_line(path: Path, text: str, error: ValueError) -> list[str]:
    """`error`: why the file as a whole is not JSON."""
    # No other line ends: a label may hold what Unicode calls one.
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    if lines and (lines[0] in ("[", "{") or re.match(r'\[\s*"|\{\s*"', lines[0])):
        what = "JSON Lines" if lines[0].endswith("}") else f"not JSON: {error}"
        raise UsageError(f"{path} is {what}; give the labels one a line, or as a JSON list.")
    if any(_numbered(rows) for rows in (lines, lines[1:])):
        raise UsageError(
            f"{path} has a number before each label; give the labels alone, one a line, in the order "
            "of their numbers."
        )
    if lines and all(re.fullmatch(r'".*"', line) for line in lines):
        raise UsageError(f"{path} has each label in quotes; give them without, or as a JSON list.")
    return lines


def _numbered(lines: Sequence[str]) -> bool:
    """Whether two lines or more are counted from 0 or 1, as rows of a table."""
    found = [re.match(r"(\d+)\s*[,;:\t]", line) for line in lines]
    counted = [int(each[1]) for each in found if each]
    first = counted[0] if counted else 0
    return len(lines) > 1 and first < 2 and counted == list(range(first, first + len(lines)))


def read_verbalizers(path: Path) -> dict[str, str]:
    """What is scored for each label, from a file with a JSON object."""
    values = json_object(str(path), read_text(path))
    if not all(isinstance(value, str) for value in values.values()):
        raise UsageError(f"{path} must map each label to a text.")
    return values

"""Readers of structured command-line values: NAME=VALUE pairs, JSON and small files."""

import json
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from choir_cli.console import UsageError


def pairs(form: str, values: Sequence[str]) -> dict[str, str]:
    """Return `["a=x", "b=y"]` as a mapping, in order.

    `form` is what the user must write, such as `--adapter NAME=DIR`. Raises UsageError if a name, an `=`
    or a value is missing, or if a name is given twice.
    """
    found: dict[str, str] = {}
    for value in values:
        name, equals, rest = value.partition("=")
        if not (name and equals and rest):
            raise UsageError(f"{value!r} must be given as {form}.")
        if name in found:
            raise UsageError(f"{form} gives {name!r} twice.")
        found[name] = rest
    return found


def several(form: str, values: Sequence[str]) -> dict[str, list[str]]:
    """Return `["a=x", "b=y", "a=z"]` as a mapping to lists, in order. Raises UsageError as `pairs` does,
    but takes a name several times."""
    found: dict[str, list[str]] = {}
    for value in values:
        for name, rest in pairs(form, [value]).items():
            found.setdefault(name, []).append(rest)
    return found


def numbers(form: str, values: Sequence[str]) -> dict[str, float]:
    """Return `["a=0.7"]` as a mapping to numbers. Raises UsageError if a value is no number."""
    try:
        return {name: float(value) for name, value in pairs(form, values).items()}
    except ValueError:
        raise UsageError(f"{form} needs a number, not {', '.join(values)}.") from None


def json_object(option: str, text: str) -> dict[str, Any]:
    """Return the JSON object in `text`. Raises UsageError, naming `option`, if it is not one."""
    try:
        value = json.loads(text)
    except ValueError as error:
        raise UsageError(f"{option} is not JSON: {error}.") from None
    if not isinstance(value, dict):
        raise UsageError(f'{option} takes a JSON object such as {{"name": 1}}, not {text!r}.')
    return value


def read_text(path: Path) -> str:
    """Return the text of a file, without the byte order mark that some editors write.

    Raises UsageError if the file cannot be read or is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path} is not UTF-8 text; save it as UTF-8.") from None


def read_labels(path: Path) -> list[str]:
    """Return the labels of a file in their order.

    The file has one label on each line, whose outer space is removed; or it is JSON: a list of texts, or
    an object with the labels by their numbers (`id2label`). Raises UsageError if it holds something
    else, such as a table.
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
            raise UsageError(f"{path} holds one label twice: {same[spelled]!a} and {label!a}.")
        same[spelled] = label
    return labels


def _labels_of_json(path: Path, content: list[Any] | dict[str, Any]) -> list[str]:
    if isinstance(content, dict):
        numbers = [str(number) for number in range(len(content))]
        if set(content) != set(numbers):
            raise UsageError(
                f"{path} is a JSON object whose keys are not the numbers from 0 on; write one label on "
                "each line, a JSON list, or the labels by their numbers (id2label)."
            )
        content = [content[number] for number in numbers]
    if not all(isinstance(label, str) for label in content):
        raise UsageError(f"{path} holds labels that are not texts: put each in quotes.")
    return list(content)


def _labels_by_line(path: Path, text: str, error: ValueError) -> list[str]:
    """Return one label for each line. `error` says why the file as a whole is not JSON."""
    # Only \n ends a line: a label may hold the other characters that Unicode counts as line ends.
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    if lines and (lines[0] in ("[", "{") or re.match(r'\[\s*"|\{\s*"', lines[0])):
        what = "JSON Lines" if lines[0].endswith("}") else f"not JSON: {error}"
        raise UsageError(f"{path} is {what}; write one label on each line, or a JSON list.")
    if any(_numbered(rows) for rows in (lines, lines[1:])):
        raise UsageError(
            f"{path} has a number before each label; write only the labels, one on each line, in the "
            "order of their numbers."
        )
    if lines and all(re.fullmatch(r'".*"', line) for line in lines):
        raise UsageError(f"{path} has each label in quotes; write them without, or as a JSON list.")
    return lines


def _numbered(lines: Sequence[str]) -> bool:
    """Return whether the lines, at least two, start with numbers that count up from 0 or 1."""
    found = [re.match(r"(\d+)\s*[,;:\t]", line) for line in lines]
    counted = [int(each[1]) for each in found if each]
    first = counted[0] if counted else 0
    return len(lines) > 1 and first < 2 and counted == list(range(first, first + len(lines)))


def read_verbalizers(path: Path) -> dict[str, str]:
    """Return the verbalizer of each label, from a file with a JSON object. Raises UsageError if it holds
    something else."""
    values = json_object(str(path), read_text(path))
    if not all(isinstance(value, str) for value in values.values()):
        raise UsageError(f"{path} must hold a JSON object that maps each label to a text.")
    return values

"""The texts of OpenAI answers, documents or event streams, so that two answers can be compared."""

import json
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping
from typing import Any

from serve.errors import Refusal
from serve.fusion.answers import same_answer
from serve.gateway.http.stream import Parts
from serve.manifest import Ensemble

LARGEST_ANSWER = 1_000_000
"""The most bytes of an answer that is kept for comparison."""

DONE = b"data: [DONE]"


class Transcript:
    """Collects the parts of one answer."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._size = 0

    def add(self, part: bytes) -> None:
        self._size += len(part)
        if self._size > LARGEST_ANSWER:
            self._parts.clear()
        else:
            self._parts.append(part)

    def texts(self) -> dict[int, str] | None:
        """Return the text of each choice by its index.

        Returns None if the answer is incomplete or too long, or if it calls tools."""
        whole = b"".join(self._parts) if self._size <= LARGEST_ANSWER else b""
        try:
            if whole.startswith(b"data:"):
                return _texts_of_events(whole)
            return _texts([json.loads(whole)])
        except (ValueError, KeyError, TypeError):
            return None


class Recorded:
    """Passes the parts of an answer on, and copies them into a transcript."""

    def __init__(self, parts: Parts, into: Transcript) -> None:
        self._parts = parts
        self._into = into

    async def __aiter__(self) -> AsyncIterator[bytes | Refusal]:
        async for part in self._parts:
            if isinstance(part, bytes):
                self._into.add(part)
            yield part

    async def aclose(self) -> None:
        await self._parts.aclose()


def agreement(
    one: Transcript, other: Transcript, ensemble: Ensemble, body: Mapping[str, Any]
) -> float | None:
    """Return the share of choices that have the same answer. Answers are compared as by the fusion `vote`.

    Returns None if the two cannot be compared: one is incomplete, or the texts are sampled at random and
    the ensemble has no rule that extracts the answer from a text."""
    extract = ensemble.fusion.extract
    if extract is None and body.get("temperature") != 0:
        return None
    mine, theirs = one.texts(), other.texts()
    if not mine or theirs is None:
        return None
    same = [
        index in theirs and same_answer(text, theirs[index], extract)
        for index, text in mine.items()
    ]
    return sum(same) / len(same)


def _texts_of_events(whole: bytes) -> dict[int, str] | None:
    lines = [line for line in whole.split(b"\n") if line.startswith(b"data:")]
    if not lines or lines[-1].strip() != DONE:
        return None
    return _texts([json.loads(line.removeprefix(b"data:")) for line in lines[:-1]])


def _texts(documents: list[dict[str, Any]]) -> dict[int, str] | None:
    found: defaultdict[int, str] = defaultdict(str)
    for document in documents:
        for choice in document["choices"]:
            said = choice.get("message") or choice.get("delta") or choice
            if said.get("tool_calls"):
                return None
            found[choice["index"]] += said.get("content") or said.get("text") or ""
    return dict(found)

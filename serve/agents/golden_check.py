"""Asks a loaded version its golden inputs. Every replica must give the known answers before a version goes live."""

import json
import logging
from collections.abc import Sequence
from contextlib import aclosing

from serve.engine.interface import Engine, GenerateCall, PredictCall, Route, Text, Version
from serve.errors import Refusal
from serve.fusion.fused import Answers, Fused, FusedSets
from serve.labels import completion_prompt
from serve.manifest import GOLDEN_TOKENS, Golden
from serve.together import together

logger = logging.getLogger(__name__)

AT_ONCE = 64
"""Texts that one call of `predict` asks."""
WRITTEN_AT_ONCE = 16
"""Calls of `generate` that run at the same time."""
SHOWN = 80
"""Characters of an input or an answer that a message repeats."""


async def wrong_golden(engine: Engine, version: Version) -> str | None:
    """Return the first golden input that a loaded version answers wrongly, in a sentence for the rollout; None if all
    answers are right.

    A refusal or an exception of the engine counts as a wrong answer, and is named."""
    golden = version.ensemble.golden
    writes = version.ensemble.task == "generation"
    ask, size = (_written, WRITTEN_AT_ONCE) if writes else (_predicted, AT_ONCE)
    wrong: list[str] = []
    for first in range(0, len(golden), size):
        part = golden[first : first + size]
        try:
            said = await ask(engine, version, part, first)
        except Exception as error:  # any exception means that the version has not answered
            logger.exception("%s could not answer its golden inputs.", version.key)
            return f"the engine failed on its golden inputs ({type(error).__name__})"
        if isinstance(said, Refusal):
            return f"its golden inputs cannot be answered: {said.message}"
        wrong += [
            f"golden input {first + number} ({_shown(each)}) is answered {answer}"
            for number, (each, answer) in enumerate(zip(part, said, strict=True))
            if answer is not None
        ]
    if not wrong:
        return None
    more = f" (and {len(wrong) - 1} more of {len(golden)})" if len(wrong) > 1 else ""
    return f"{wrong[0]}{more}"


async def _predicted(
    engine: Engine, version: Version, golden: Sequence[Golden], first: int
) -> list[str | None] | Refusal:
    """Ask `predict`. Return for each input what is wrong about its answer, as `'this' instead of 'that'`, and None for
    a right answer; or return the engine's refusal. `first` is the number of the first input."""
    call = PredictCall(
        version=version.key,
        inputs=tuple(map(_text, golden)),
        request_id=f"golden-{version.key}-{first}",
    )
    answer = await engine.predict(call)
    if isinstance(answer, Refusal):
        return answer
    return [
        _difference(each, answer.answers, answer.labels, row) for row, each in enumerate(golden)
    ]


def _difference(golden: Golden, answers: Answers, labels: Sequence[str], row: int) -> str | None:
    if isinstance(answers, Fused):
        label = labels[int(answers.winners[row])]
        return None if label == golden.label else f"{label!r} instead of {golden.label!r}"
    if isinstance(answers, FusedSets):
        chosen = {label for label, is_in in zip(labels, answers.chosen[row], strict=True) if is_in}
        expected = set(golden.labels or [])
        return None if chosen == expected else f"{_listed(chosen)} instead of {_listed(expected)}"
    value = float(answers.values[row])
    assert golden.value is not None, "the manifest was checked"
    assert golden.tolerance is not None, "the manifest was checked"
    if abs(value - golden.value) <= golden.tolerance:
        return None
    return f"{value:g} instead of {golden.value:g}, give or take {golden.tolerance:g}"


async def _written(
    engine: Engine, version: Version, golden: Sequence[Golden], first: int
) -> list[str | None] | Refusal:
    """Ask `generate`, without sampling. Returns the same as `_predicted`."""
    found = await together(
        _greedy(engine, version, each, first + row) for row, each in enumerate(golden)
    )
    said: list[str | None] = []
    for each, text in zip(golden, found, strict=True):
        if isinstance(text, Refusal):
            return text
        written, expected = _whole(text), _whole(each.text or "")
        same = written == expected
        said.append(None if same else f"{written[:SHOWN]!r} instead of {expected[:SHOWN]!r}")
    return said


async def _greedy(engine: Engine, version: Version, golden: Golden, number: int) -> str | Refusal:
    """Return the text that the version writes at temperature 0, or the engine's refusal. An image is asked about in a
    chat: completions have no images."""
    given = _text(golden)
    asked: dict[str, object]
    route: Route = "completions"
    if given.image is None:
        template = version.ensemble.template
        asked = {"prompt": completion_prompt(template, given.text, given.text_pair)}
    else:
        image = {"type": "image_url", "image_url": {"url": given.image}}
        content = [image, {"type": "text", "text": given.text}]
        route, asked = "chat", {"messages": [{"role": "user", "content": content}]}
    body = {**asked, "max_tokens": golden.max_tokens or GOLDEN_TOKENS, "temperature": 0}
    request_id = f"golden-{version.key}-{number}"
    parts: list[bytes] = []
    async with aclosing(
        engine.generate(GenerateCall(version.key, route, body, request_id))
    ) as answer:
        async for part in answer:
            if isinstance(part, Refusal):
                return part
            parts.append(part)
    (choice,) = json.loads(b"".join(parts))["choices"]
    text: str = choice["text"] if given.image is None else choice["message"]["content"]
    return text


def _whole(text: str) -> str:
    """Return the text without the space around it and without an incomplete last character.

    A limit of tokens may cut a character in half. Some decoders write a replacement character then, and vLLM writes
    nothing."""
    return text.strip().rstrip("\ufffd").rstrip()


def _text(golden: Golden) -> Text:
    if isinstance(golden.input, str):
        return Text(golden.input)
    given = golden.input.get
    return Text(given("text", ""), given("text_pair"), given("image"))


def _shown(golden: Golden) -> str:
    given = _text(golden)
    return (
        repr(given.text[:SHOWN]) if given.image is None else f"an image and {given.text[:SHOWN]!r}"
    )


def _listed(labels: set[str]) -> str:
    return ", ".join(map(repr, sorted(labels))) or "no label"

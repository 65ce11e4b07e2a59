"""Calls that end when their client's time is over."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from serve.engine.interface import DEADLINE, GenerateCall
from serve.engine.limits.deadline import in_time, parts_in_time
from serve.errors import Refusal
from tests.serve.engine.calls import ask, greedy

LONG = 60.0
ENDED: list[str] = []


async def answer(after: asyncio.Event) -> str | Refusal:
    try:
        await after.wait()
        return "an answer"
    finally:
        ENDED.append("answer")


async def parts(after: asyncio.Event) -> AsyncGenerator[str | Refusal, None]:
    try:
        yield "first"
        await after.wait()
        yield "second"
    finally:
        await asyncio.sleep(0)
        ENDED.append("parts")


@pytest.mark.parametrize("seconds", [None, LONG])
async def test_what_is_in_time_is_passed_on(seconds: float | None) -> None:
    done = asyncio.Event()
    done.set()
    assert await in_time(seconds, answer(done)) == "an answer"
    assert [part async for part in parts_in_time(seconds, parts(done))] == ["first", "second"]


async def test_what_is_late_is_ended_and_refused() -> None:
    ENDED.clear()
    assert await in_time(0.01, answer(asyncio.Event())) == DEADLINE
    assert ENDED == ["answer"]
    given = [part async for part in parts_in_time(0.05, parts(asyncio.Event()))]
    assert given == ["first", DEADLINE]
    assert ENDED == ["answer", "parts"]


async def test_a_timeout_of_the_work_itself_is_not_the_clients() -> None:
    async def fails() -> str | Refusal:
        raise TimeoutError("of something else")

    async def breaks() -> AsyncGenerator[str | Refusal, None]:
        yield "first"
        raise TimeoutError("of something else")

    with pytest.raises(TimeoutError, match="something else"):
        await in_time(LONG, fails())
    with pytest.raises(TimeoutError, match="something else"):
        _ = [part async for part in parts_in_time(LONG, breaks())]


@pytest.mark.engine
@pytest.mark.asyncio(loop_scope="session")
@pytest.mark.parametrize("model", ["five", "one"])
@pytest.mark.parametrize("streams", [True, False])
async def test_a_late_answer_leaves_no_request_in_vllm(
    engine: Any, model: str, streams: bool
) -> None:
    """More requests than vLLM runs at once: some run, some wait, and some wait for a place."""
    body = {**greedy("where is my card", tokens=100), "stream": streams}

    async def asked(number: int) -> list[bytes | Refusal]:
        call = GenerateCall(f"{model}@1", "completions", body, f"late-{number}", seconds_left=0.1)
        return [part async for part in engine.generate(call)]

    answers = await asyncio.gather(*(asked(number) for number in range(24)))
    late = [parts[-1] == DEADLINE for parts in answers]
    assert not any(isinstance(parts[-1], Refusal) for parts in answers if parts[-1] != DEADLINE)
    assert sum(late) >= 12, "the first ones may be in time on a fast machine"
    assert not engine._llm.output_processor.request_states
    assert engine.state().versions[f"{model}@1"] == 0
    whole = await ask(engine, greedy("where is my card", tokens=3), model)
    assert whole["usage"]["completion_tokens"] == 3

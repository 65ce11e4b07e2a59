"""What requests are told when vLLM's core is dead."""

import asyncio
from collections.abc import AsyncGenerator

import pytest

from serve.engine.core_process.death import DIED, GONE, answered, death_of, streamed
from serve.errors import Refusal


class Core:
    """vLLM's client, which knows whether its core lives."""

    errored = False


async def nothing() -> str:
    raise AssertionError("a dead engine must not be asked")


async def test_a_request_after_the_death_hears_that_the_engine_is_gone() -> None:
    core = Core()
    core.errored = True
    assert await answered(core, nothing) is GONE
    assert [part async for part in streamed(core, parts(core))] == [GONE]


async def test_an_error_after_the_death_is_reported_as_the_death() -> None:
    core = Core()

    async def dies() -> str:
        core.errored = True
        raise AttributeError("any error of vLLM's")

    assert await answered(core, dies) is DIED


async def test_other_errors_are_raised_and_answers_are_passed_on() -> None:
    core = Core()

    async def fails() -> str:
        raise RuntimeError("something else")

    async def answers() -> str | Refusal:
        return "an answer"

    with pytest.raises(RuntimeError, match="something else"):
        await answered(core, fails)
    assert await answered(core, answers) == "an answer"
    with pytest.raises(RuntimeError, match="something else"):
        _ = [part async for part in streamed(core, parts(core, RuntimeError("something else")))]
    refusal = Refusal(500, "The engine ended the request.")
    assert [part async for part in streamed(core, parts(core, refusal))] == [b"1", refusal]


async def parts(
    core: Core, last: Refusal | Exception | None = None, *, dies: bool = False
) -> AsyncGenerator[bytes | Refusal, None]:
    yield b"1"
    core.errored |= dies
    if isinstance(last, Exception):
        raise last
    if last is not None:
        yield last


@pytest.mark.parametrize("last", [RuntimeError("the core is dead"), Refusal(500, "vLLM's words")])
async def test_a_stream_ends_with_the_death_of_its_engine(last: Refusal | Exception) -> None:
    core = Core()
    assert [part async for part in streamed(core, parts(core, last, dies=True))] == [b"1", DIED]


async def test_a_death_is_noticed() -> None:
    core = Core()
    noticing = asyncio.create_task(death_of(core))
    await asyncio.sleep(0)
    assert not noticing.done()
    core.errored = True
    await asyncio.wait_for(noticing, 20)

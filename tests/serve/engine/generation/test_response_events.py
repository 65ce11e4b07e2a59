"""How a streamed response ends when the engine refuses it or breaks off, without an engine."""

from collections.abc import AsyncIterator

import pytest
from vllm.exceptions import GenerationError, VLLMValidationError

from serve.engine.generation.response_events import begun
from serve.errors import Refusal

CREATED = b"event: response.created\ndata: {}\n\n"
WORKING = b"event: response.in_progress\ndata: {}\n\n"
DELTA = b'event: response.output_text.delta\ndata: {"delta": "a"}\n\n'
DONE = b"event: response.completed\ndata: {}\n\n"


async def events(*parts: bytes, error: Exception | None = None) -> AsyncIterator[bytes]:
    for part in parts:
        yield part
    if error is not None:
        # As Starlette does once the status is sent.
        raise RuntimeError("Caught handled exception, but response already started.") from error


async def test_all_events_come_in_their_order() -> None:
    given = (CREATED, WORKING, DELTA, DELTA, DONE)
    assert tuple([part async for part in begun(events(*given))]) == given


async def test_a_refusal_comes_instead_of_the_first_events() -> None:
    error = VLLMValidationError("It is too long.", parameter="input")
    found = [part async for part in begun(events(CREATED, WORKING, error=error))]
    assert found == [Refusal(400, "It is too long.", param="input")]


async def test_a_fault_after_them_is_the_last_item() -> None:
    error = GenerationError("Internal server error")
    found = [part async for part in begun(events(CREATED, WORKING, DELTA, error=error))]
    assert found == [CREATED, WORKING, DELTA, Refusal(500, "Internal server error")]


async def test_a_fault_of_another_kind_is_raised() -> None:
    with pytest.raises(RuntimeError):
        [part async for part in begun(events(CREATED, error=KeyError("x")))]

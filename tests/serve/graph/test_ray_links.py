"""What an engine says of its own death, as the gateway hears it."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from serve.engine.interface import (
    ENGINE_DIED,
    ENGINE_GONE,
    VERSION_NOT_LOADED,
    GenerateCall,
    PredictCall,
)
from serve.errors import Refusal
from serve.gateway.links import Unavailable
from serve.graph.ray_links import STOPPED, RayControl, RayEngines
from serve.protocol.requests import SwapRequest


class Handle:
    """A deployment handle whose engine says what it is told to."""

    def __init__(self, *said: Any) -> None:
        self._said = said
        self.predict = self.generate = self

    def options(self, **_: Any) -> "Handle":
        return self

    def remote(self, call: PredictCall | GenerateCall) -> Any:
        return self._answer() if isinstance(call, PredictCall) else _Stream(self._said)

    async def _answer(self) -> Any:
        return self._said[0]


class _Stream:
    def __init__(self, said: tuple[Any, ...]) -> None:
        self._said = said

    async def __aiter__(self) -> AsyncIterator[Any]:
        for each in self._said:
            yield each

    def cancel(self) -> None:
        pass


PREDICT = PredictCall("intents@1", (), "r")
GENERATE = GenerateCall("replies@1", "chat", {}, "r")


@pytest.mark.parametrize(("code", "begun"), [(ENGINE_GONE, False), (ENGINE_DIED, True)])
async def test_an_engine_whose_core_is_dead_cannot_be_reached(code: str, begun: bool) -> None:
    refusal = Refusal(503, "The engine has failed.", code)
    with pytest.raises(Unavailable, match="has failed") as raised:
        await RayEngines({"": Handle(refusal)}).predict(PREDICT)  # type: ignore[arg-type]
    assert raised.value.begun is begun
    parts = RayEngines({"": Handle(b"1", refusal)}).generate(GENERATE)  # type: ignore[arg-type]
    assert await anext(parts) == b"1"
    with pytest.raises(Unavailable) as raised:
        await anext(parts)
    assert raised.value.begun is begun


async def test_other_refusals_are_answers() -> None:
    refusal = Refusal(503, "It is not here.", VERSION_NOT_LOADED)
    engines = RayEngines({"": Handle(refusal)})  # type: ignore[arg-type]
    assert await engines.predict(PREDICT) == refusal
    assert [part async for part in engines.generate(GENERATE)] == [refusal]


async def test_a_call_goes_to_the_engines_of_its_pool() -> None:
    named = {name: Refusal(503, name, VERSION_NOT_LOADED) for name in ("mail", "chat")}
    engines = RayEngines({name: Handle(answer) for name, answer in named.items()})  # type: ignore[misc]
    for name, answer in named.items():
        assert await engines.predict(replace(PREDICT, pool=name)) == answer
        parts = engines.generate(replace(GENERATE, pool=name))
        assert [part async for part in parts] == [answer]


class Endless:
    """A deployment handle whose calls are answered by nobody, and end when they are cancelled."""

    def __init__(self) -> None:
        self.predict = self.generate = self.swap = self
        self.asked = asyncio.Event()

    def options(self, **_: Any) -> "Endless":
        return self

    def remote(self, *_: Any) -> "_Endless":
        return _Endless(self.asked)


class _Endless:
    def __init__(self, asked: asyncio.Event) -> None:
        self._asked = asked
        self._end = asyncio.get_running_loop().create_future()

    def __await__(self) -> Any:
        self._asked.set()
        return self._end.__await__()

    async def __aiter__(self) -> AsyncIterator[Any]:
        yield b"1"
        await self

    def cancel(self) -> None:
        self._end.cancel()


async def test_calls_end_with_a_sentence_when_the_server_stops() -> None:
    handle = Endless()
    engines, control = RayEngines({"": handle}), RayControl(handle)  # type: ignore[arg-type]
    parts = engines.generate(GENERATE)
    assert await anext(parts) == b"1"
    asking = [
        asyncio.ensure_future(anext(parts)),
        asyncio.create_task(engines.predict(PREDICT)),
        asyncio.create_task(control.swap("intents", SwapRequest(version=2), "ann", True)),
    ]
    await handle.asked.wait()
    await asyncio.sleep(0)
    for calls in (engines.calls, control.calls):
        calls.end()
    said = await asyncio.gather(*asking, return_exceptions=True)
    assert [str(each) for each in said] == [STOPPED] * 3
    assert all(isinstance(each, Unavailable) for each in said)
    with pytest.raises(Unavailable, match="is stopping"):  # another engine is not asked either
        await engines.predict(PREDICT)

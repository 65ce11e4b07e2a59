"""What an engine says of its own death, as the gateway hears it."""

from collections.abc import AsyncIterator
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
from serve.graph.ray_links import RayEngines


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
        await RayEngines(Handle(refusal)).predict(PREDICT)  # type: ignore[arg-type]
    assert raised.value.begun is begun
    parts = RayEngines(Handle(b"1", refusal)).generate(GENERATE)  # type: ignore[arg-type]
    assert await anext(parts) == b"1"
    with pytest.raises(Unavailable) as raised:
        await anext(parts)
    assert raised.value.begun is begun


async def test_other_refusals_are_answers() -> None:
    refusal = Refusal(503, "It is not here.", VERSION_NOT_LOADED)
    engines = RayEngines(Handle(refusal))  # type: ignore[arg-type]
    assert await engines.predict(PREDICT) == refusal
    assert [part async for part in engines.generate(GENERATE)] == [refusal]

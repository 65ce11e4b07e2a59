"""The process of a timer: starts an engine, asks each rung in turn, and writes the median times.

It reads two lines of JSON on standard input: the engine's settings, and later the rungs with their inputs."""

import asyncio
import json
import statistics
import sys
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any

from serve.engine.interface import (
    Engine,
    EngineSettings,
    GenerateCall,
    PredictCall,
    PrepareError,
    Route,
    Text,
    Version,
)
from serve.errors import Refusal, RefusedError
from serve.files import write_atomically
from serve.labels import completion_prompt
from serve.manifest import Ensemble
from training.data.images import marked, parted

WARM_UP = 3
"""Requests to each rung that are not counted."""
ROUNDS = 20
"""Measured requests to each rung. They go round by round, so that a slow moment of the machine hits all rungs."""
TOKENS = 16
"""Tokens of each generated answer."""

Ask = Callable[[int], Coroutine[Any, Any, None]]


async def measure(result: Path) -> None:
    """Do all the process's work, and write `result`: `milliseconds` by the name of each rung, and `refusals`."""
    from serve.engine.vllm_engine import VLLMEngine

    settings = EngineSettings(**json.loads(sys.stdin.readline()))
    engine = await VLLMEngine.start(settings)
    try:
        work = json.loads(await asyncio.to_thread(sys.stdin.readline))
        asks: dict[str, Ask] = {}
        same: dict[str, str] = {}
        refusals: set[str] = set()
        for number, rung in enumerate(work["rungs"], 1):
            content = json.dumps({**rung["manifest"], "scores": {}, "golden": []})
            twin = next((name for name, other in same.items() if other == content), None)
            same[rung["name"]] = content
            if twin is not None:  # the best member is one of the members
                asks[rung["name"]] = asks[twin]
                continue
            version = _version(rung, number)
            try:
                await engine.prepare(version)
            except PrepareError as error:
                refusals.add(str(error))
                continue
            asks[rung["name"]] = _ask(engine, version.ensemble, work["inputs"])
        times = await _medians(asks, refusals)
        write_atomically(result, json.dumps({"milliseconds": times, "refusals": sorted(refusals)}))
    finally:
        await engine.close()


def _version(rung: Mapping[str, Any], number: int) -> Version:
    """Return the rung as a version of its own number, so that an engine holds all rungs at once."""
    ensemble = Ensemble.model_validate(rung["manifest"])
    ensemble = ensemble.model_copy(update={"version": number, "golden": []})
    return Version(ensemble, rung["adapters"], rung["parameters"])


async def _medians(asks: Mapping[str, Ask], refusals: set[str]) -> dict[str, float]:
    """Return the median milliseconds of each rung. An input that the engine refuses, such as a text that is too long,
    is not counted, and why is added to `refusals`; a rung without any answer is left out."""
    seconds: dict[Ask, list[float]] = {ask: [] for ask in asks.values()}
    asked = 0
    for turn in range(WARM_UP + ROUNDS):
        for ask, found in seconds.items():
            request = ask(asked)  # to mark an image anew takes time that is not the engine's
            began = time.perf_counter()
            try:
                await request
            except RefusedError as refused:
                refusals.add(str(refused))
            else:
                if turn >= WARM_UP:
                    found.append(time.perf_counter() - began)
            asked += 1
    return {
        name: 1000 * statistics.median(seconds[ask]) for name, ask in asks.items() if seconds[ask]
    }


def _ask(engine: Engine, ensemble: Ensemble, inputs: Sequence[Mapping[str, Any]]) -> Ask:
    """Return what makes one request, and sends it when it is awaited. Each has a text or an image of its own, so that
    no cache makes a later rung faster."""

    def predict(turn: int) -> Coroutine[Any, Any, None]:
        given = inputs[turn % len(inputs)]
        image, text = parted(given["text"])
        asked = (
            Text(f"{turn} {text}", given["pair"])
            if image is None
            else Text(text, image=marked(image, turn))
        )
        return _predict(engine, PredictCall(ensemble.id, (asked,), f"timer-{turn}"))

    def generate(turn: int) -> Coroutine[Any, Any, None]:
        image, text = parted(inputs[turn % len(inputs)]["text"])
        route: Route = "completions"
        asked: dict[str, Any]
        if image is None:
            asked = {"prompt": completion_prompt(ensemble.template, f"{turn} {text}")}
        else:  # completions have no images
            parts: list[dict[str, Any]] = [
                {"type": "image_url", "image_url": {"url": marked(image, turn)}},
                {"type": "text", "text": text},
            ]
            route, asked = "chat", {"messages": [{"role": "user", "content": parts}]}
        body = {
            "model": ensemble.id,
            **asked,
            "max_tokens": TOKENS,
            "temperature": 0,
            "ignore_eos": True,
        }
        return _generate(engine, GenerateCall(ensemble.id, route, body, f"timer-{turn}"))

    return generate if ensemble.task == "generation" else predict


async def _predict(engine: Engine, call: PredictCall) -> None:
    _check(await engine.predict(call))


async def _generate(engine: Engine, call: GenerateCall) -> None:
    async for part in engine.generate(call):
        _check(part)


def _check(answer: object) -> None:
    """Raise RefusedError for a refusal: a refused request has no time."""
    if isinstance(answer, Refusal):
        raise RefusedError.of(answer)


if __name__ == "__main__":
    asyncio.run(measure(Path(sys.argv[1])))

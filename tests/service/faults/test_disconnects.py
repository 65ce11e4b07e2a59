"""Clients that leave: in the middle of a stream, and while they wait. Nothing of their requests goes on."""

import asyncio
import re
import time
from typing import Any

import httpx
import pytest

from tests.service.models import TEXTS
from tests.service.running import Service

pytestmark = pytest.mark.engine

PATIENCE = 60.0
AT_ONCE = 16
ATTEMPTS = 240
LONG = {"max_tokens": 400, "ignore_eos": True}
FUSED = {**LONG, "model": "replies", "fusion": {"method": "average"}, "stream": True}
CLIENTS: list[tuple[str, dict[str, Any], bool]] = [
    ("/v1/completions", {**FUSED, "prompt": TEXTS[0]}, True),
    ("/v1/chat/completions", {**FUSED, "messages": [{"role": "user", "content": TEXTS[1]}]}, True),
    ("/v1/completions", {**LONG, "model": "replies/a", "prompt": TEXTS[2], "stream": True}, True),
    ("/v1/completions", {**LONG, "model": "replies", "prompt": TEXTS[3]}, False),
    ("/v1/predict", {"model": "intents", "input": TEXTS * 50}, False),
]
"""Route, body, and whether the client leaves after the first part; others leave before the answer."""
BUSY = re.compile(
    r"^(?:vllm:num_requests_(?:running|waiting)|choir_sequences|choir_requests_in_flight)\{.*\} (\S+)$",
    re.MULTILINE,
)


async def leave(http: httpx.AsyncClient, number: int) -> None:
    """Ask, and leave. A server that is full refuses at once; then ask again."""
    for _ in range(ATTEMPTS):
        if not await refused(http, *CLIENTS[number % len(CLIENTS)]):
            return
        await asyncio.sleep(0.5)
    raise AssertionError("a server whose clients leave stays full")


async def refused(http: httpx.AsyncClient, path: str, body: dict[str, Any], streams: bool) -> bool:
    """Ask, and leave unless the server refuses. Returns whether it refused."""
    if streams:
        async with http.stream("POST", path, json=body) as response:
            if response.status_code == 429:
                return True
            assert response.status_code == 200
            await anext(response.aiter_raw())
        return False
    asking = asyncio.create_task(http.post(path, json=body))
    await asyncio.wait([asking], timeout=0.05)
    if asking.done():
        assert asking.result().status_code == 429
        return True
    asking.cancel()
    await asyncio.wait([asking])
    return False


async def leaving(url: str, count: int) -> None:
    numbers = iter(range(count))
    async with httpx.AsyncClient(base_url=url, timeout=60, trust_env=False) as http:

        async def client() -> None:
            for number in numbers:
                await leave(http, number)

        async with asyncio.TaskGroup() as group:
            for _ in range(min(count, AT_ONCE)):
                group.create_task(client())


@pytest.mark.parametrize("count", [25, pytest.param(1000, marks=pytest.mark.slow)])
async def test_when_clients_leave_the_engines_have_nothing_left_to_do(
    service: Service, count: int
) -> None:
    await leaving(service.url, count)
    deadline = time.monotonic() + PATIENCE
    while busy := [
        float(value) for value in BUSY.findall(service.get("/metrics").text) if float(value)
    ]:
        assert time.monotonic() < deadline, f"{sum(busy):g} go on"
        # vLLM shows what it does at each step, and an engine without requests makes none.
        for _ in range(4):
            answer = service.post("/v1/predict", {"model": "intents", "input": TEXTS[0]})
            assert answer.status_code == 200
        await asyncio.sleep(0.5)

"""A gateway with faked links. Tests call its ASGI application."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from serve.agents.gateway_agent import GatewayAgent
from serve.config.settings import Settings
from serve.gateway.app import create_app
from serve.protocol.messages import Desired
from tests.serve.gateway.fakes import (
    FakeControl,
    FakeController,
    FakeEngines,
    desired,
    ensemble,
    held,
)


@dataclass
class Gateway:
    app: FastAPI
    http: httpx.AsyncClient
    engines: FakeEngines
    control: FakeControl
    controller: FakeController
    agent: GatewayAgent

    async def predict(self, **fields: Any) -> httpx.Response:
        return await self.http.post("/v1/predict", json={"model": "intents", "input": "x"} | fields)


Start = Callable[..., Awaitable[Gateway]]


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    """`await start(state, **settings)`: a gateway that knows the desired state."""
    async with AsyncExitStack() as stack:

        async def start(state: Desired | None = None, **settings: Any) -> Gateway:
            if state is None:
                state = desired(
                    held(ensemble(version=3)),
                    held(ensemble(version=2), "warm"),
                    held(ensemble("replies", 1, "generation")),
                )
            controller = FakeController(state)
            agent = GatewayAgent(controller)
            await agent.start()
            stack.push_async_callback(agent.stop)
            engines, control = FakeEngines(), FakeControl()
            whole = Settings.model_validate({"bundles": [Path("bundle")], **settings})
            app = create_app(engines, control, agent, whole)
            transport = httpx.ASGITransport(app, raise_app_exceptions=False)
            http = httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8000")
            await stack.enter_async_context(http)
            return Gateway(app, http, engines, control, controller, agent)

        yield start


@pytest.fixture
async def gateway(start: Start) -> Gateway:
    return await start()


def refused(response: httpx.Response, status: int, words: str = "") -> dict[str, Any]:
    """Check the status and the shape of an error answer, and return its fields."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    (key,) = response.json()
    error: dict[str, Any] = response.json()[key]
    assert (key, set(error)) == ("error", {"message", "type", "param", "code"})
    assert words.lower() in error["message"].lower()
    return error

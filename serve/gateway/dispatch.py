"""From a model name to an engine's answer: resolve, stamp, ask."""

from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any, TypeVar

from fastapi import Request

from serve.engine.interface import VERSION_NOT_LOADED, Refusal
from serve.gateway.disconnect import until_gone
from serve.gateway.errors import RefusedError, refused
from serve.gateway.links import Unavailable
from serve.gateway.observe import exchange_of
from serve.rollout.gateway_agent import GatewayAgent
from serve.rollout.routes import Target

T = TypeVar("T")

REFRESH_SECONDS = 2.0
"""How long newer routes are waited for after an engine lacked a version."""
UNREADY_SECONDS = 5.0
"""How long an answer is waited for while no engine is known to be ready. Not zero: a controller
that restarts knows of none until the engines have reported again, and they answer all the while."""


class Dispatcher:
    """Sends a call to an engine under the version that the gateway's routes name."""

    def __init__(self, agent: GatewayAgent, seconds: float) -> None:
        """`seconds`: after which an answer that has not begun is given up."""
        self._agent = agent
        self._seconds = seconds

    async def ask(
        self,
        request: Request,
        model: str,
        ask: Callable[[Target], Coroutine[Any, Any, T | Refusal]],
    ) -> tuple[Target, T]:
        """Who answers `model`, and the answer of `ask` for it.

        An engine that lacks the version (a swap has just unloaded it) is asked once more with
        newer routes, and when one dies before it has answered, another one is. Raises
        UnknownModel, RefusedError, Unavailable, ClientGoneError."""
        target = self._resolve(request, model)
        try:
            answer = await self._ask_once(request, ask(target))
        except Unavailable:
            answer = await self._ask_once(request, ask(target))
        if isinstance(answer, Refusal) and answer.code == VERSION_NOT_LOADED:
            await self._agent.refresh(REFRESH_SECONDS)
            target = self._resolve(request, model)
            answer = await self._ask_once(request, ask(target))
        if isinstance(answer, Refusal):
            raise RefusedError(_for_client(answer, target))
        return target, answer

    def _resolve(self, request: Request, model: str) -> Target:
        routes = self._agent.routes
        if not routes.models():
            raise refused(503, "No model can be asked yet: the server is still starting.")
        target = routes.resolve(model)
        exchange_of(request).resolved(target)
        return target

    async def _ask_once(
        self, request: Request, work: Coroutine[Any, Any, T | Refusal]
    ) -> T | Refusal:
        seconds = self._seconds
        if not self._agent.ready:
            seconds = min(seconds, UNREADY_SECONDS)
        return await until_gone(request.receive, work, seconds)


def _for_client(refusal: Refusal, target: Target) -> Refusal:
    """An engine's refusal in words that concern the client."""
    if refusal.code != VERSION_NOT_LOADED:
        return refusal
    if target.track == "pinned":
        return Refusal(
            404, f"{target.key} is not loaded any more.", code="model_not_found", param="model"
        )
    return replace(refusal, message=f"No engine has {target.key} loaded now; try again.")

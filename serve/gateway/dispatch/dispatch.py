"""Resolve a model name to a version, and get the version's answer from an engine."""

import asyncio
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any, TypeVar

from fastapi import Request

from serve.agents.gateway_agent import GatewayAgent
from serve.agents.routes import Routes, Target
from serve.engine.interface import DEADLINE, VERSION_NOT_LOADED
from serve.errors import Refusal, RefusedError
from serve.gateway.dispatch.outcome import Answer, Ask, Outcomes
from serve.gateway.dispatch.places import EnginePlaces
from serve.gateway.http.disconnect import Limit, server_limit, until_gone
from serve.gateway.http.limits import OnDemandShare
from serve.gateway.http.observe import exchange_of

T = TypeVar("T")

STICKY_HEADER = "x-choir-sticky"
REFRESH_SECONDS = 2.0
"""How long a request waits for newer routes after an engine lacked its version."""
PAUSES = (0.0, 0.1, 0.2, 0.4, 0.8)
"""Seconds before each further attempt after an engine lacked the version. Each attempt uses newer routes.
An engine that was cut off lacks a newly active version until it has loaded it."""
UNREADY_SECONDS = 5.0
"""How long a request waits for an answer while no engine is known to be ready. It is not zero, because a restarted
controller knows of no engine until the engines have reported again, and they answer requests meanwhile."""


class Dispatcher:
    """Sends each call to an engine, for the version that the gateway's routes choose."""

    def __init__(
        self,
        agent: GatewayAgent,
        outcomes: Outcomes,
        seconds: float,
        on_demand: OnDemandShare,
        places: EnginePlaces,
    ) -> None:
        """`seconds`: how long a request waits for its answer to begin."""
        self._agent = agent
        self._outcomes = outcomes
        self._seconds = seconds
        self._on_demand = on_demand
        self._places = places

    async def ask(
        self,
        request: Request,
        model: str,
        ask: Ask[T],
        answers: int,
        user: str | None = None,
    ) -> tuple[Target, Answer[T]]:
        """Resolve `model`, call `ask` for it, and return the target that answered with its answer.

        A request that wants `answers` from each member first waits for its place in the engines, and keeps it until its
        client has everything.

        During a canary, requests with the same sticky header get the same version; without the header,
        requests with the same `user` do. If an engine lacks the version, because a swap has just
        unloaded it, the call is made again with newer routes. If an engine ends before it has
        answered, another one is asked. Raises UnknownModel, RefusedError, Unavailable or
        ClientGoneError."""
        key = request.headers.get(STICKY_HEADER) or user
        target = self._resolved(request, self._routes.resolve(model, key))
        members = 1 if target.member else len(target.ensemble.members)
        with self._on_demand.place(target, members):
            await self._take_place(request, target, members, answers)
            return await self._answered(request, model, target, ask)

    async def _take_place(
        self, request: Request, target: Target, members: int, answers: int
    ) -> None:
        """Return when the request may go to an engine. Raises RefusedError or ClientGoneError."""
        place = self._places.of(target.pool).take(target.ensemble.name, members, answers)
        exchange_of(request).afterwards(place.leave)
        if not place.runs:
            await until_gone(request.receive, place.turn(), self._limit(request, target))

    async def _answered(
        self,
        request: Request,
        model: str,
        target: Target,
        ask: Ask[T],
    ) -> tuple[Target, Answer[T]]:
        answer = await self._ask(request, target, ask)
        if _lacks(answer) and target.track == "canary":
            target = self._resolved(request, self._routes.named(model))
            answer = await self._ask(request, target, ask)
        for pause in PAUSES:
            if not _lacks(answer):
                break
            await asyncio.sleep(pause)
            refreshed = await self._agent.refresh(REFRESH_SECONDS)
            target = self._resolved(request, self._routes.named(model))
            answer = await self._ask(request, target, ask)
            if not refreshed:
                break
        if isinstance(answer, Refusal):
            raise RefusedError.of(_for_client(answer, target))
        return target, answer

    @property
    def _routes(self) -> Routes:
        routes = self._agent.routes
        if not routes.models():
            raise RefusedError(503, "The server is still starting and has no model yet; try again.")
        return routes

    @staticmethod
    def _resolved(request: Request, target: Target) -> Target:
        exchange_of(request).resolved(target)
        return target

    async def _ask(self, request: Request, target: Target, ask: Ask[T]) -> Answer[T] | Refusal:
        """Ask one version, and give up when the client leaves or the time is over."""

        async def while_there(
            work: Coroutine[Any, Any, Answer[T] | Refusal],
        ) -> Answer[T] | Refusal:
            return await until_gone(request.receive, work, self._limit(request, target))

        return await self._outcomes.asked(target, ask, while_there)

    def _limit(self, request: Request, target: Target) -> Limit:
        """Return how long a request may wait from now on: as long as its client gives it, or the server."""
        seconds = self._seconds
        if not self._agent.ready_engines(target.pool):
            seconds = min(seconds, UNREADY_SECONDS)
        left = exchange_of(request).seconds_left
        return server_limit(seconds) if left is None or seconds < left else Limit(left, DEADLINE)


def _lacks(answer: object) -> bool:
    """Return whether the answer is an engine's refusal because it does not have the version."""
    return isinstance(answer, Refusal) and answer.code == VERSION_NOT_LOADED


def _for_client(refusal: Refusal, target: Target) -> Refusal:
    """Return an engine's refusal in words that help the client."""
    if not _lacks(refusal):
        return refusal
    if target.track == "pinned":
        return Refusal(
            404, f"{target.key} is not loaded any more.", code="model_not_found", param="model"
        )
    return replace(refusal, message=f"No engine has {target.key} loaded now; try again.")

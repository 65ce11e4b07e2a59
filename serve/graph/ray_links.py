"""The links of gateways and agents to engines and the controller, over Ray Serve's deployment handles."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from ray.exceptions import RayActorError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from serve.engine.interface import (
    ENGINE_DIED,
    ENGINE_GONE,
    EmbedCall,
    Embeddings,
    GenerateCall,
    PredictCall,
    Prediction,
)
from serve.errors import Refusal
from serve.gateway.links import Unavailable
from serve.protocol.audit import AuditEntry
from serve.protocol.messages import Desired, StatusReport
from serve.protocol.pruning import PruneRequest, PruneView
from serve.protocol.requests import SwapRequest
from serve.protocol.views import EnsembleView, RolloutView
from serve.watching.board import Family

T = TypeVar("T")

GONE = (RayActorError, RayServeException)
"""The errors that a handle raises if its replica has died or if there is none."""

NO_ENGINE = "No engine can be reached, or the one that worked on this died; try again."
STOPPED = "The server is stopping; ask again once it is back."


class Calls:
    """The calls that one process waits for, so that they can be ended when the server stops."""

    def __init__(self) -> None:
        self._running: set[Any] = set()
        self._ended = False

    @contextlib.contextmanager
    def running(self, call: Any) -> Iterator[None]:
        """Surround the wait for one call. Raises Unavailable when `end` is called meanwhile."""
        if self._ended:
            call.cancel()
            raise Unavailable(STOPPED)
        self._running.add(call)
        try:
            yield
        except (Exception, asyncio.CancelledError) as error:
            if self._ended:
                raise Unavailable(STOPPED) from error
            raise
        finally:
            self._running.discard(call)

    def end(self) -> None:
        """Cancel all calls."""
        self._ended = True
        for call in tuple(self._running):
            call.cancel()


class RayControl:
    """The way to the controller: `lease.ControllerLink` for agents, `gateway.links.ControlLink` for routes."""

    def __init__(self, handle: DeploymentHandle) -> None:
        self._handle = handle
        self.calls = Calls()

    async def sync(self, report: StatusReport) -> Desired:
        desired: Desired = await self._handle.sync.remote(report)
        return desired

    async def push_metrics(self, kind: str, participant: str, snapshot: tuple[Family, ...]) -> None:
        await self._handle.push_metrics.remote(kind, participant, snapshot)

    async def swap(
        self, name: str, request: SwapRequest, actor: str, wait: bool
    ) -> RolloutView | Refusal:
        return await self._reach(self._handle.swap.remote(name, request, actor, wait))

    async def make(self, name: str, actor: str) -> EnsembleView | Refusal:
        return await self._reach(self._handle.make.remote(name, actor))

    async def rollback(
        self, name: str, to: int | None, actor: str, wait: bool
    ) -> RolloutView | Refusal:
        return await self._reach(self._handle.rollback.remote(name, to, actor, wait))

    async def promote(self, rollout_id: str, actor: str, wait: bool) -> RolloutView | Refusal:
        return await self._reach(self._handle.promote.remote(rollout_id, actor, wait))

    async def abort(self, rollout_id: str, actor: str) -> RolloutView | Refusal:
        return await self._reach(self._handle.abort.remote(rollout_id, actor))

    async def prune(self, request: PruneRequest, actor: str) -> PruneView | Refusal:
        return await self._reach(self._handle.prune.remote(request, actor))

    async def rollouts(self) -> Sequence[RolloutView] | Refusal:
        return await self._reach(self._handle.rollouts.remote())

    async def rollout(self, rollout_id: str) -> RolloutView | Refusal:
        return await self._reach(self._handle.rollout.remote(rollout_id))

    async def audit(self) -> Sequence[AuditEntry] | Refusal:
        return await self._reach(self._handle.audit.remote())

    async def ensembles(
        self, limit: int | None = None, after: str | None = None
    ) -> Sequence[EnsembleView]:
        return await self._reach(self._handle.ensembles.remote(limit, after))

    async def ensemble(self, name: str) -> EnsembleView | Refusal:
        return await self._reach(self._handle.ensemble.remote(name))

    async def report(self, name: str) -> bytes | Refusal:
        return await self._reach(self._handle.report.remote(name))

    async def metrics(self) -> bytes:
        return await self._reach(self._handle.metrics.remote())

    async def _reach(self, call: Awaitable[T]) -> T:
        try:
            with self.calls.running(call):
                return await call
        except GONE as error:
            raise Unavailable(
                "The controller cannot be reached now; predictions go on. Try again in a moment."
            ) from error


class RayEngines:
    """The way to the engines. The call says which pool answers it, and that pool's handle chooses an engine."""

    def __init__(self, pools: Mapping[str, DeploymentHandle]) -> None:
        self._handles = pools
        self._streaming = {pool: handle.options(stream=True) for pool, handle in pools.items()}
        self.calls = Calls()

    async def predict(self, call: PredictCall) -> Prediction | Refusal:
        return await self._reach(self._handles[call.pool].predict.remote(call))

    async def embed(self, call: EmbedCall) -> Embeddings | Refusal:
        return await self._reach(self._handles[call.pool].embed.remote(call))

    async def _reach(self, asked: Awaitable[T]) -> T:
        try:
            with self.calls.running(asked):
                return _alive(await asked)
        except GONE as error:
            raise Unavailable(NO_ENGINE) from error

    async def generate(self, call: GenerateCall) -> AsyncGenerator[bytes | Refusal, None]:
        stream = self._streaming[call.pool].generate.remote(call)
        try:
            with self.calls.running(stream):
                async for part in stream:
                    yield _alive(part)
        except GONE as error:
            raise Unavailable(NO_ENGINE) from error
        finally:
            stream.cancel()


def _alive(answer: T) -> T:
    """Return the answer of an engine. Raises Unavailable if it says that the engine's core is dead."""
    if isinstance(answer, Refusal) and answer.code in (ENGINE_GONE, ENGINE_DIED):
        raise Unavailable(answer.message, begun=answer.code == ENGINE_DIED)
    return answer

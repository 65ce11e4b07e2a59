"""The client for asyncio. It has the methods of `Choir`."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx
from httpx_sse import EventSource
from pydantic import BaseModel

from choir_client import _requests, _streaming
from choir_client._connection import Connection
from choir_client._flows import Flow, Pause, Retries
from choir_client._requests import Call, Input
from choir_client.exceptions import error_from_response
from choir_client.models import (
    AuditEntry,
    ChatChunk,
    ChatCompletion,
    Completion,
    EnsembleStatus,
    Health,
    Model,
    Pruned,
    Rollout,
)
from choir_client.predictions import Prediction

T = TypeVar("T")
M = TypeVar("M", bound=BaseModel)


class AsyncChoir(Connection):
    """A client for asyncio with the methods of `Choir`. Use it with `async with`, or await `aclose`."""

    def __init__(
        self,
        url: str | None = None,
        token: str | None = None,
        *,
        timeout: httpx.Timeout | float | None = None,
        retries: Retries | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        super().__init__(url, token, timeout, retries)
        self._http = httpx.AsyncClient(**self._options, transport=transport)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections to the server."""
        await self._http.aclose()

    async def predict(
        self,
        model: str,
        input: Input | Sequence[Input],
        *,
        fusion: Mapping[str, Any] | None = None,
        return_members: bool = False,
    ) -> Prediction:
        """See `Choir.predict`."""
        return await self._run(self._predict(model, input, fusion, return_members))

    async def complete(self, model: str, prompt: Any, **options: Any) -> Completion:
        """See `Choir.complete`."""
        return await self._run(self._send(_requests.completion(model, prompt, options)))

    async def chat(
        self, model: str, messages: Sequence[Mapping[str, Any]], **options: Any
    ) -> ChatCompletion:
        """See `Choir.chat`."""
        return await self._run(self._send(_requests.chat(model, messages, options)))

    def stream_complete(self, model: str, prompt: Any, **options: Any) -> AsyncIterator[Completion]:
        """See `Choir.stream_complete`; iterate with `async for`."""
        call = _requests.completion(model, prompt, {**options, "stream": True})
        return self._stream(call, Completion)

    def stream_chat(
        self, model: str, messages: Sequence[Mapping[str, Any]], **options: Any
    ) -> AsyncIterator[ChatChunk]:
        """See `Choir.stream_chat`; iterate with `async for`."""
        return self._stream(_requests.chat(model, messages, {**options, "stream": True}), ChatChunk)

    async def models(self) -> list[Model]:
        """See `Choir.models`."""
        return await self._run(self._send(_requests.models()))

    async def ensembles(self) -> list[EnsembleStatus]:
        """See `Choir.ensembles`."""
        return await self._run(self._ensembles())

    async def ensemble(self, name: str) -> EnsembleStatus:
        """See `Choir.ensemble`."""
        return await self._run(self._send(_requests.ensemble(name)))

    async def swap(
        self,
        name: str,
        *,
        members: Mapping[str, str | Sequence[str]] | None = None,
        manifest: Mapping[str, Any] | None = None,
        version: int | None = None,
        expected_version: int | None = None,
        strategy: Mapping[str, Any] | None = None,
        allow_stale_fusion: bool = False,
        wait: bool = True,
    ) -> Rollout:
        """See `Choir.swap`."""
        return await self._run(
            self._swap(
                name,
                members=members,
                manifest=manifest,
                version=version,
                expected_version=expected_version,
                strategy=strategy,
                allow_stale_fusion=allow_stale_fusion,
                wait=wait,
            )
        )

    async def rollback(self, name: str, to: int | None = None, *, wait: bool = True) -> Rollout:
        """See `Choir.rollback`."""
        return await self._run(self._send(_requests.rollback(name, to=to, wait=wait)))

    async def rollouts(self) -> list[Rollout]:
        """See `Choir.rollouts`."""
        return await self._run(self._send(_requests.rollouts()))

    async def audit(self) -> list[AuditEntry]:
        """See `Choir.audit`."""
        return await self._run(self._send(_requests.audit()))

    async def rollout(self, rollout_id: str) -> Rollout:
        """See `Choir.rollout`."""
        return await self._run(self._send(_requests.rollout(rollout_id)))

    async def wait(self, rollout_id: str) -> Rollout:
        """See `Choir.wait`."""
        return await self._run(self._wait(rollout_id))

    async def promote(self, rollout_id: str, *, wait: bool = True) -> Rollout:
        """See `Choir.promote`."""
        return await self._run(self._send(_requests.promote(rollout_id, wait=wait)))

    async def abort(self, rollout_id: str) -> Rollout:
        """See `Choir.abort`."""
        return await self._run(self._send(_requests.abort(rollout_id)))

    async def prune(
        self,
        *,
        keep_versions: int | None = None,
        keep_days: float | None = None,
        dry_run: bool = True,
    ) -> Pruned:
        """See `Choir.prune`."""
        return await self._run(self._send(_requests.prune(keep_versions, keep_days, dry_run)))

    async def health(self) -> Health:
        """See `Choir.health`."""
        return await self._run(self._send(_requests.probe("/health")))

    async def ready(self) -> Health:
        """See `Choir.ready`."""
        return await self._run(self._send(_requests.probe("/ready")))

    async def metrics(self) -> str:
        """See `Choir.metrics`."""
        return await self._run(self._send(_requests.metrics()))

    async def _run(self, flow: Flow[T]) -> T:
        try:
            step = next(flow)
            while True:
                if isinstance(step, Pause):
                    await asyncio.sleep(step.seconds)
                    step = next(flow)
                    continue
                try:
                    response = await self._http.request(**self._request(step))
                except httpx.HTTPError as error:
                    step = flow.throw(self._failed(error, step))
                else:
                    step = flow.send(response)
        except StopIteration as end:
            answer: T = end.value
            return answer

    async def _stream(self, call: Call[Any], model: type[M]) -> AsyncIterator[M]:
        try:
            async with self._http.stream(call.method, call.path, **call.body) as response:
                if response.status_code >= 400:
                    await response.aread()
                    raise error_from_response(response)
                async for event in EventSource(response).aiter_sse():
                    if event.data == _streaming.DONE:
                        return
                    if event.data:
                        yield _streaming.chunk_of(event.data, model)
        except httpx.HTTPError as error:
            raise self._failed(error) from error
        raise _streaming.cut_off()

"""The clients: `Choir` blocks, `AsyncChoir` awaits; everything else about them is the same."""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx
from httpx_sse import EventSource
from pydantic import BaseModel

from choir_client import _flows, _requests, _streaming
from choir_client._flows import Flow, Pause, Retries
from choir_client._requests import Call, Input
from choir_client.exceptions import ChoirError, ConnectionFailed, error_from_response
from choir_client.models import (
    AuditEntry,
    ChatChunk,
    ChatCompletion,
    Completion,
    EnsembleStatus,
    Health,
    Model,
    Prediction,
    Rollout,
)

T = TypeVar("T")
M = TypeVar("M", bound=BaseModel)

DEFAULT_URL = "http://127.0.0.1:8000"
DEFAULT_TIMEOUT = httpx.Timeout(120.0, connect=5.0)
CHANGE_TIMEOUT = httpx.Timeout(3600.0, connect=5.0)
"""For changes of version: a server fetches an adapter for up to half an hour, and then has it prepared."""
POLL_SECONDS = 1.0
"""How often a rollout that is waited for is looked at."""


class _Connection:
    """What both clients know of their server."""

    def __init__(
        self,
        url: str | None,
        token: str | None,
        timeout: httpx.Timeout | float | None,
        retries: Retries | None,
    ) -> None:
        self._timeout = DEFAULT_TIMEOUT if timeout is None else timeout
        self._patience = CHANGE_TIMEOUT if timeout is None else timeout
        self.url = (url or os.environ.get("CHOIR_URL") or DEFAULT_URL).rstrip("/")
        try:
            scheme = httpx.URL(self.url).scheme
        except httpx.InvalidURL as error:
            raise ChoirError(f"{self.url!r} is not a URL: {error}") from None
        if scheme not in ("http", "https"):
            raise ChoirError(f"{self.url!r} is not a server's address: write http://HOST:PORT")
        token = token or os.environ.get("CHOIR_TOKEN")
        self._headers = {"authorization": f"Bearer {token}"} if token else {}
        self._retries = retries or Retries()

    def _failed(self, error: httpx.HTTPError, call: Call[Any] | None = None) -> ConnectionFailed:
        reason = str(error) or type(error).__name__
        goes_on = call is not None and call.patient and not isinstance(error, httpx.ConnectError)
        rest = "; the change goes on there if it was accepted: see the rollouts" if goes_on else ""
        return ConnectionFailed(f"no answer from {self.url}: {reason}{rest}")

    def _predict(
        self,
        model: str,
        inputs: Input | Sequence[Input],
        fusion: Mapping[str, Any] | None,
        return_members: bool,
    ) -> Flow[Prediction]:
        return _flows.predict(model, inputs, fusion, return_members, self._retries)

    def _send(self, call: Call[T]) -> Flow[T]:
        return _flows.send(call, self._retries)

    def _swap(
        self, name: str, *, strategy: Mapping[str, Any] | None, wait: bool, **candidate: Any
    ) -> Flow[Rollout]:
        tried = strategy is not None and strategy.get("kind", "immediate") != "immediate"
        call = _requests.swap(name, strategy=strategy, wait=wait and not tried, **candidate)
        if wait and tried:
            return _flows.try_out(call, self._retries, POLL_SECONDS)
        return self._send(call)


class Choir(_Connection):
    """A synchronous client. Use it as a context manager, or call `close`.

    `url` and `token` default to CHOIR_URL and CHOIR_TOKEN. Without a `timeout` of your own, an
    answer is waited for 120 s, and that to a change of version an hour. Every method raises a `ChoirError`.
    Reads, predictions and completions are tried again after a broken connection, a 429, 502, 503
    and 504 (see `Retries`); swaps and rollbacks never.
    """

    def __init__(
        self,
        url: str | None = None,
        token: str | None = None,
        *,
        timeout: httpx.Timeout | float | None = None,
        retries: Retries | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        super().__init__(url, token, timeout, retries)
        self._http = httpx.Client(
            base_url=self.url,
            headers=self._headers,
            timeout=self._timeout,
            transport=transport,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def predict(
        self,
        model: str,
        input: Input | Sequence[Input],
        *,
        fusion: Mapping[str, Any] | None = None,
        return_members: bool = False,
    ) -> Prediction:
        """The fused answer to each input; lists over 1,024 are sent in parts, answered by one
        version.
        """
        return self._run(self._predict(model, input, fusion, return_members))

    def complete(self, model: str, prompt: Any, **options: Any) -> Completion:
        """A completion; `options` are those of OpenAI's API, and `fusion`."""
        return self._run(self._send(_requests.completion(model, prompt, options)))

    def chat(
        self, model: str, messages: Sequence[Mapping[str, Any]], **options: Any
    ) -> ChatCompletion:
        """A chat completion; `options` are those of OpenAI's API, and `fusion`."""
        return self._run(self._send(_requests.chat(model, messages, options)))

    def stream_complete(self, model: str, prompt: Any, **options: Any) -> Iterator[Completion]:
        """The chunks of a completion as they come."""
        call = _requests.completion(model, prompt, {**options, "stream": True})
        return self._stream(call, Completion)

    def stream_chat(
        self, model: str, messages: Sequence[Mapping[str, Any]], **options: Any
    ) -> Iterator[ChatChunk]:
        """The chunks of a chat completion as they come."""
        return self._stream(_requests.chat(model, messages, {**options, "stream": True}), ChatChunk)

    def models(self) -> list[Model]:
        """Every name that `model` may have."""
        return self._run(self._send(_requests.models()))

    def ensembles(self) -> list[EnsembleStatus]:
        return self._run(self._send(_requests.ensembles()))

    def ensemble(self, name: str) -> EnsembleStatus:
        return self._run(self._send(_requests.ensemble(name)))

    def swap(
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
        """Make new adapters, a new manifest or another version the active one.

        With `wait`, the next request after the return is answered by the new version. A shadow or
        a canary, such as `{"kind": "canary", "share": 0.1}`, is waited for until its gates or
        somebody have decided; raises RolloutAborted if it does not go live.
        """
        return self._run(
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

    def rollback(self, name: str, to: int | None = None, *, wait: bool = True) -> Rollout:
        """Back to the version that was active before, or to version `to`."""
        return self._run(self._send(_requests.rollback(name, to=to, wait=wait)))

    def rollouts(self) -> list[Rollout]:
        return self._run(self._send(_requests.rollouts()))

    def audit(self) -> list[AuditEntry]:
        """Every change that was asked for, refused ones too; the latest first."""
        return self._run(self._send(_requests.audit()))

    def rollout(self, rollout_id: str) -> Rollout:
        return self._run(self._send(_requests.rollout(rollout_id)))

    def wait(self, rollout_id: str) -> Rollout:
        """The rollout, once it is committed on every replica or aborted."""
        return self._run(_flows.wait(rollout_id, self._retries, POLL_SECONDS))

    def promote(self, rollout_id: str, *, wait: bool = True) -> Rollout:
        """Commit the candidate of a shadow or canary, whatever its gates say."""
        return self._run(self._send(_requests.promote(rollout_id, wait=wait)))

    def abort(self, rollout_id: str) -> Rollout:
        """End a rollout that is not committed; nothing changes."""
        return self._run(self._send(_requests.abort(rollout_id)))

    def health(self) -> Health:
        """Whether the gateway lives."""
        return self._run(self._send(_requests.probe("/health")))

    def ready(self) -> Health:
        """Whether requests are answered now; `ok` is False while engines start."""
        return self._run(self._send(_requests.probe("/ready")))

    def metrics(self) -> str:
        """Prometheus text."""
        return self._run(self._send(_requests.metrics()))

    def _run(self, flow: Flow[T]) -> T:
        try:
            step = next(flow)
            while True:
                if isinstance(step, Pause):
                    time.sleep(step.seconds)
                    step = next(flow)
                    continue
                try:
                    response = self._http.request(
                        step.method,
                        step.path,
                        json=step.json,
                        params=step.params,
                        timeout=self._patience if step.patient else self._timeout,
                    )
                except httpx.HTTPError as error:
                    step = flow.throw(self._failed(error, step))
                else:
                    step = flow.send(response)
        except StopIteration as end:
            answer: T = end.value
            return answer

    def _stream(self, call: Call[Any], model: type[M]) -> Iterator[M]:
        try:
            with self._http.stream(call.method, call.path, json=call.json) as response:
                if response.status_code >= 400:
                    response.read()
                    raise error_from_response(response)
                for event in EventSource(response).iter_sse():
                    if event.data == _streaming.DONE:
                        return
                    if event.data:
                        yield _streaming.chunk_of(event.data, model)
        except httpx.HTTPError as error:
            raise self._failed(error) from error
        raise _streaming.cut_off()


class AsyncChoir(_Connection):
    """An asynchronous client with the methods of `Choir`; use it with `async with`, or await
    `aclose`.
    """

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
        self._http = httpx.AsyncClient(
            base_url=self.url,
            headers=self._headers,
            timeout=self._timeout,
            transport=transport,
        )

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
        return await self._run(self._send(_requests.ensembles()))

    async def ensemble(self, name: str) -> EnsembleStatus:
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
        return await self._run(self._send(_requests.rollouts()))

    async def audit(self) -> list[AuditEntry]:
        """See `Choir.audit`."""
        return await self._run(self._send(_requests.audit()))

    async def rollout(self, rollout_id: str) -> Rollout:
        return await self._run(self._send(_requests.rollout(rollout_id)))

    async def wait(self, rollout_id: str) -> Rollout:
        """See `Choir.wait`."""
        return await self._run(_flows.wait(rollout_id, self._retries, POLL_SECONDS))

    async def promote(self, rollout_id: str, *, wait: bool = True) -> Rollout:
        """See `Choir.promote`."""
        return await self._run(self._send(_requests.promote(rollout_id, wait=wait)))

    async def abort(self, rollout_id: str) -> Rollout:
        """See `Choir.abort`."""
        return await self._run(self._send(_requests.abort(rollout_id)))

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
                    response = await self._http.request(
                        step.method,
                        step.path,
                        json=step.json,
                        params=step.params,
                        timeout=self._patience if step.patient else self._timeout,
                    )
                except httpx.HTTPError as error:
                    step = flow.throw(self._failed(error, step))
                else:
                    step = flow.send(response)
        except StopIteration as end:
            answer: T = end.value
            return answer

    async def _stream(self, call: Call[Any], model: type[M]) -> AsyncIterator[M]:
        try:
            async with self._http.stream(call.method, call.path, json=call.json) as response:
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

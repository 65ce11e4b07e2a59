"""The blocking client. `AsyncChoir` has the same methods for asyncio."""

import time
from collections.abc import Iterator, Mapping, Sequence
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


class Choir(Connection):
    """A blocking client. Use it as a context manager, or call `close`.

    `url` and `token` default to the environment variables CHOIR_URL and CHOIR_TOKEN, `url` then to
    http://127.0.0.1:8000. `timeout` is in seconds; by default 120 s, and one hour for calls that
    change a version. Every method raises `ChoirError` or one of its subclasses if it fails.

    Reads, predictions and completions are sent again after a broken connection and after the statuses
    429, 502, 503 and 504, or a 5xx that a proxy gave (see `Retries`). Streams and calls that change a
    version are sent once.
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
        self._http = httpx.Client(**self._options, transport=transport)

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
        """Close the connections to the server."""
        self._http.close()

    def predict(
        self,
        model: str,
        input: Input | Sequence[Input],
        *,
        fusion: Mapping[str, Any] | None = None,
        return_members: bool = False,
    ) -> Prediction:
        """Return the fused answer to each input, in the order of `input`, as the class of the task.

        A list of more than 1,024 inputs is sent in parts. The same version answers all parts.
        """
        return self._run(self._predict(model, input, fusion, return_members))

    def complete(self, model: str, prompt: Any, **options: Any) -> Completion:
        """Return a completion. `options` are those of OpenAI's API, and `fusion`."""
        return self._run(self._send(_requests.completion(model, prompt, options)))

    def chat(
        self, model: str, messages: Sequence[Mapping[str, Any]], **options: Any
    ) -> ChatCompletion:
        """Return a chat completion. `options` are those of OpenAI's API, and `fusion`."""
        return self._run(self._send(_requests.chat(model, messages, options)))

    def stream_complete(self, model: str, prompt: Any, **options: Any) -> Iterator[Completion]:
        """Yield the chunks of a completion as they arrive."""
        call = _requests.completion(model, prompt, {**options, "stream": True})
        return self._stream(call, Completion)

    def stream_chat(
        self, model: str, messages: Sequence[Mapping[str, Any]], **options: Any
    ) -> Iterator[ChatChunk]:
        """Yield the chunks of a chat completion as they arrive."""
        return self._stream(_requests.chat(model, messages, {**options, "stream": True}), ChatChunk)

    def models(self) -> list[Model]:
        """Return every name that a request may give as `model`."""
        return self._run(self._send(_requests.models()))

    def ensembles(self) -> list[EnsembleStatus]:
        """Return the status of every ensemble, by name."""
        return self._run(self._ensembles())

    def ensemble(self, name: str) -> EnsembleStatus:
        """Return the status of one ensemble."""
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
        """Replace the active version: by new adapters for `members`, by a `manifest`, or by an
        existing `version`. Give exactly one of the three.

        With `wait`, the method returns once the new version is active: the next request gets its
        answer from it. With a shadow or a canary, such as `{"kind": "canary", "share": 0.1}`, the
        method waits until the gates or a person have decided. Raises RolloutAborted if such a
        candidate is not promoted, Conflict if `expected_version` is not the active one, and
        ValueError if not exactly one of the three is given.
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
        """Make the version that was active before, or version `to`, active again."""
        return self._run(self._send(_requests.rollback(name, to=to, wait=wait)))

    def rollouts(self) -> list[Rollout]:
        """Return the latest rollouts, newest first."""
        return self._run(self._send(_requests.rollouts()))

    def audit(self) -> list[AuditEntry]:
        """Return the latest changes that were requested, refused ones included, newest first."""
        return self._run(self._send(_requests.audit()))

    def rollout(self, rollout_id: str) -> Rollout:
        """Return one rollout."""
        return self._run(self._send(_requests.rollout(rollout_id)))

    def wait(self, rollout_id: str) -> Rollout:
        """Return the rollout once every replica has committed it, or it is aborted."""
        return self._run(self._wait(rollout_id))

    def promote(self, rollout_id: str, *, wait: bool = True) -> Rollout:
        """Commit the candidate of a shadow or a canary, whatever its gates say."""
        return self._run(self._send(_requests.promote(rollout_id, wait=wait)))

    def abort(self, rollout_id: str) -> Rollout:
        """End a rollout before its commit. The active version stays."""
        return self._run(self._send(_requests.abort(rollout_id)))

    def prune(
        self,
        *,
        keep_versions: int | None = None,
        keep_days: float | None = None,
        dry_run: bool = True,
    ) -> Pruned:
        """Remove versions and files that nobody can reach any more. By default, only return what would go.

        `keep_versions` of the newest versions of each ensemble stay (20 without it), and those that are younger than
        `keep_days` (30). Whatever is active, loaded, in a rollout or in a bundle stays too.
        """
        return self._run(self._send(_requests.prune(keep_versions, keep_days, dry_run)))

    def health(self) -> Health:
        """Return whether the gateway is alive."""
        return self._run(self._send(_requests.probe("/health")))

    def ready(self) -> Health:
        """Return whether the server answers requests now. `ok` is False while engines start."""
        return self._run(self._send(_requests.probe("/ready")))

    def metrics(self) -> str:
        """Return the metrics of all replicas in Prometheus' text format."""
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
                    response = self._http.request(**self._request(step))
                except httpx.HTTPError as error:
                    step = flow.throw(self._failed(error, step))
                else:
                    step = flow.send(response)
        except StopIteration as end:
            answer: T = end.value
            return answer

    def _stream(self, call: Call[Any], model: type[M]) -> Iterator[M]:
        try:
            with self._http.stream(call.method, call.path, **call.body) as response:
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

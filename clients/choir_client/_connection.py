"""What the blocking and the asyncio client share: the settings, and how each call becomes a flow."""

import os
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import httpx

from choir_client import _flows, _requests
from choir_client._flows import Flow, Retries
from choir_client._requests import Call, Input
from choir_client.exceptions import ChoirError, ConnectionFailed
from choir_client.models import EnsembleStatus, Rollout
from choir_client.predictions import Prediction

T = TypeVar("T")

DEFAULT_URL = "http://127.0.0.1:8000"
DEFAULT_TIMEOUT = httpx.Timeout(120.0, connect=5.0)
CHANGE_TIMEOUT = httpx.Timeout(3600.0, connect=5.0)
"""Timeout of calls that change a version. A server may spend half an hour on fetching an adapter before it
prepares it."""
POLL_SECONDS = 1.0
"""Seconds between two looks at a rollout that the caller waits for."""


class Connection:
    """The server's address, the token, the timeouts and the retries of one client.

    Raises ChoirError if `url` is not the address of an HTTP server.
    """

    def __init__(
        self,
        url: str | None,
        token: str | None,
        timeout: httpx.Timeout | float | None,
        retries: Retries | None,
    ) -> None:
        self._timeout = DEFAULT_TIMEOUT if timeout is None else timeout
        self._change_timeout = CHANGE_TIMEOUT if timeout is None else timeout
        self.url = (url or os.environ.get("CHOIR_URL") or DEFAULT_URL).rstrip("/")
        try:
            scheme = httpx.URL(self.url).scheme
        except httpx.InvalidURL as error:
            raise ChoirError(f"{self.url!r} is not a URL: {error}") from None
        if scheme not in ("http", "https"):
            raise ChoirError(f"{self.url!r} is not a server's address: write http://HOST:PORT")
        token = token or os.environ.get("CHOIR_TOKEN")
        self._options: dict[str, Any] = {
            "base_url": self.url,
            "headers": {"authorization": f"Bearer {token}"} if token else {},
            "timeout": self._timeout,
        }
        self._retries = retries or Retries()

    def _request(self, call: Call[Any]) -> dict[str, Any]:
        """Return the arguments of httpx's `request` for `call`. Raises ChoirError if its body cannot be JSON."""
        return {
            "method": call.method,
            "url": call.path,
            **call.body,
            "params": call.params,
            "timeout": self._change_timeout if call.changes else self._timeout,
        }

    def _failed(self, error: httpx.HTTPError, call: Call[Any] | None = None) -> ConnectionFailed:
        """Return the exception for `error`. Its message warns if the server may go on with a change."""
        reason = str(error) or type(error).__name__
        goes_on = call is not None and call.changes and not isinstance(error, httpx.ConnectError)
        rest = (
            "; the server may have accepted the change and go on with it: look at the rollouts"
            if goes_on
            else ""
        )
        return ConnectionFailed(f"no answer from {self.url}: {reason}{rest}")

    def _send(self, call: Call[T]) -> Flow[T]:
        return _flows.send(call, self._retries)

    def _predict(
        self,
        model: str,
        inputs: Input | Sequence[Input],
        fusion: Mapping[str, Any] | None,
        return_members: bool,
    ) -> Flow[Prediction]:
        return _flows.predict(model, inputs, fusion, return_members, self._retries)

    def _swap(
        self, name: str, *, strategy: Mapping[str, Any] | None, wait: bool, **candidate: Any
    ) -> Flow[Rollout]:
        """Return the flow of a swap. A trial is polled for, because no request may last that long."""
        on_trial = strategy is not None and strategy.get("kind", "immediate") != "immediate"
        call = _requests.swap(name, strategy=strategy, wait=wait and not on_trial, **candidate)
        if wait and on_trial:
            return _flows.await_trial(call, self._retries, POLL_SECONDS)
        return self._send(call)

    def _ensembles(self) -> Flow[list[EnsembleStatus]]:
        return _flows.ensembles(self._retries)

    def _wait(self, rollout_id: str) -> Flow[Rollout]:
        return _flows.wait(rollout_id, self._retries, POLL_SECONDS)

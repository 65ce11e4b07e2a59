"""The steps of each operation: which calls to send, when to try again, how to split a large batch.

A flow is a generator, like httpx's auth flows. It yields a `Call` to send or a `Pause` to wait. The client
sends the response back into it, or throws a ConnectionFailed. The flow returns the answer. `Choir` and
`AsyncChoir` carry out the same flows: one blocks, the other awaits.
"""

import random
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import httpx

from choir_client import _requests
from choir_client._requests import Call, Input
from choir_client.exceptions import (
    ChoirError,
    ConnectionFailed,
    RateLimited,
    RolloutAborted,
    Unavailable,
    error_from_response,
)
from choir_client.models import EnsembleStatus, Rollout, Usage
from choir_client.predictions import Prediction

T = TypeVar("T")

MAX_INPUTS = 1024
"""The most inputs that a server takes in one predict request, by default."""


PAGE = 100
"""How many ensembles are asked for at once."""


@dataclass(frozen=True)
class Pause:
    """A step of a flow: wait before the next one."""

    seconds: float


FlowStep = Call[Any] | Pause
Flow = Generator[FlowStep, httpx.Response | None, T]


@dataclass(frozen=True)
class Retries:
    """When a client sends a call again. Only calls that may safely be sent twice are.

    The pauses double from `first_pause` to at most `longest_pause` seconds, with jitter. If the
    server sends a `Retry-After`, the client waits that long instead; if it is longer than
    `longest_pause`, the client gives up.
    """

    attempts: int = 4
    """The most times that one call is sent."""
    first_pause: float = 0.25
    longest_pause: float = 8.0

    def pause(self, attempt: int, error: ChoirError) -> float | None:
        """Return the seconds to wait after failed attempt number `attempt` (from 1), or None to give up."""
        if attempt >= self.attempts:
            return None
        if isinstance(error, RateLimited | Unavailable) and error.retry_after is not None:
            return error.retry_after if error.retry_after <= self.longest_pause else None
        if isinstance(error, RateLimited | Unavailable | ConnectionFailed):
            doubled = self.first_pause * 2.0 ** (attempt - 1)
            return float(min(doubled, self.longest_pause) * random.uniform(0.5, 1.0))
        return None


def send(call: Call[T], retries: Retries) -> Flow[T]:
    """Send `call`, and again as `retries` says if that is safe. Return the parsed answer.

    Raises ChoirError if the last attempt fails.
    """
    attempt = 0
    while True:
        attempt += 1
        try:
            response = yield call
            assert response is not None
            if response.status_code < 400 or response.status_code in call.answers:
                return call.parse(response)
            raise error_from_response(response)
        except ChoirError as error:
            wait = retries.pause(attempt, error) if call.retry else None
            if wait is None:
                raise
        yield Pause(wait)


def predict(
    model: str,
    inputs: Input | Sequence[Input],
    fusion: Mapping[str, Any] | None,
    return_members: bool,
    retries: Retries,
    max_inputs: int = MAX_INPUTS,
) -> Flow[Prediction]:
    """Return one answer for any number of inputs. One version answers all of them.

    A list of more than `max_inputs` is sent in parts. Each later part asks for the version that
    answered the first, so that a swap in between cannot mix versions.
    """
    if isinstance(inputs, str | Mapping) or len(inputs) <= max_inputs:
        return (yield from send(_requests.predict(model, inputs, fusion, return_members), retries))
    whole: Prediction | None = None
    for start in range(0, len(inputs), max_inputs):
        part = yield from send(
            _requests.predict(model, inputs[start : start + max_inputs], fusion, return_members),
            retries,
        )
        for item in part.data:
            item.index += start
        if whole is None:
            whole, model = part, part.model
        else:
            whole.data = [*whole.data, *part.data]
            whole.usage = _sum(whole.usage, part.usage)
    assert whole is not None
    return whole


def ensembles(retries: Retries) -> Flow[list[EnsembleStatus]]:
    """Return all ensembles, page by page. A server that knows no pages sends all of them at once."""
    found: list[EnsembleStatus] = []
    while True:
        after = found[-1].name if found else None
        page = yield from send(_requests.ensembles(PAGE, after), retries)
        found += page.data
        if not (page.has_more and page.data):
            return found


def wait(rollout_id: str, retries: Retries, pause: float) -> Flow[Rollout]:
    """Return the rollout once every replica has committed it, or it is aborted."""
    while (rollout := (yield from send(_requests.rollout(rollout_id), retries))).open:
        yield Pause(pause)
    return rollout


def await_trial(swap: Call[Rollout], retries: Retries, pause: float) -> Flow[Rollout]:
    """Start a trial and return the rollout once it is committed. Raises RolloutAborted if it is aborted.

    A trial may take hours. So the flow looks at the rollout every `pause` seconds, instead of sending
    one request that waits.
    """
    started = yield from send(swap, retries)
    rollout = yield from wait(started.id, retries, pause)
    if rollout.state == "aborted":
        raise RolloutAborted(rollout)
    return rollout


def _sum(left: Usage, right: Usage) -> Usage:
    return Usage(
        prompt_tokens=left.prompt_tokens + right.prompt_tokens,
        completion_tokens=left.completion_tokens + right.completion_tokens,
        total_tokens=left.total_tokens + right.total_tokens,
        member_tokens=left.member_tokens + right.member_tokens,
        computed_tokens=left.computed_tokens + right.computed_tokens,
    )

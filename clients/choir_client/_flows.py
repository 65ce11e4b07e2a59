"""What a client does around one call, without doing it: when to try again, and how to split a large
batch.

A flow is a generator in the manner of httpx's auth flows: it yields a `Call` to send or a `Pause`
to wait, is sent the response (or thrown the connection's error), and returns the answer. `Choir`
and `AsyncChoir` differ only in how they carry the steps out.
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
from choir_client.models import Prediction, Rollout, Usage

T = TypeVar("T")

MAX_INPUTS = 1024
"""Inputs that a server takes in one predict request by default."""


@dataclass(frozen=True)
class Pause:
    seconds: float


FlowStep = Call[Any] | Pause
Flow = Generator[FlowStep, httpx.Response | None, T]


@dataclass(frozen=True)
class Retries:
    """How often and how patiently a call that does no harm twice is sent again.

    The pauses double from `first_pause` up to `longest_pause` seconds, with jitter; a `Retry-After`
    of the server is honoured instead, and ends the retries when it asks for more than
    `longest_pause`.
    """

    attempts: int = 4
    first_pause: float = 0.25
    longest_pause: float = 8.0

    def pause(self, attempt: int, error: ChoirError) -> float | None:
        """Seconds to wait after failed attempt number `attempt` (from 1), or None to give up."""
        if attempt >= self.attempts:
            return None
        if isinstance(error, RateLimited | Unavailable) and error.retry_after is not None:
            return error.retry_after if error.retry_after <= self.longest_pause else None
        if isinstance(error, RateLimited | Unavailable | ConnectionFailed):
            doubled = self.first_pause * 2.0 ** (attempt - 1)
            return float(min(doubled, self.longest_pause) * random.uniform(0.5, 1.0))
        return None


def send(call: Call[T], retries: Retries) -> Flow[T]:
    """Send `call`, again if that is safe and promising; return its parsed answer or raise a
    ChoirError.
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
    """One answer for any number of inputs, all given by one version.

    A list over `max_inputs` is sent in parts. The parts after the first name the version that
    answered it, so that a swap in between cannot mix two.
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
            whole.data += part.data
            whole.usage = _sum(whole.usage, part.usage)
    assert whole is not None
    return whole


def wait(rollout_id: str, retries: Retries, pause: float) -> Flow[Rollout]:
    """The rollout once it is committed on every replica, or aborted."""
    while (rollout := (yield from send(_requests.rollout(rollout_id), retries))).open:
        yield Pause(pause)
    return rollout


def try_out(swap: Call[Rollout], retries: Retries, pause: float) -> Flow[Rollout]:
    """Start a trial and wait for its end, which may take hours: no request waits for it. Raises
    RolloutAborted."""
    begun = yield from send(swap, retries)
    rollout = yield from wait(begun.id, retries, pause)
    if rollout.state == "aborted":
        raise RolloutAborted(rollout)
    return rollout


def _sum(left: Usage, right: Usage) -> Usage:
    return Usage(
        prompt_tokens=left.prompt_tokens + right.prompt_tokens,
        completion_tokens=left.completion_tokens + right.completion_tokens,
        total_tokens=left.total_tokens + right.total_tokens,
        member_tokens=left.member_tokens + right.member_tokens,
    )

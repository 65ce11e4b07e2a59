"""Sends the requests of a batch, several at once, and again where the server has no room or is away for a moment."""

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import httpx

from choir_cli.batch.answers import Answers, answered_with_error
from choir_cli.batch.requests import BadLine, Request
from choir_client import (
    AsyncChoir,
    ChoirError,
    Forbidden,
    RateLimited,
    Retries,
    Unauthorized,
    Unavailable,
)
from choir_client._requests import Call
from choir_client.exceptions import error_from_response

LONGEST_PAUSE = 60.0
"""Seconds that a batch waits at most before it sends a request again."""
NO_ANSWERS = (Unauthorized, Forbidden, RateLimited, Unavailable)
"""Errors that say nothing of the request: the token is wrong, or the server cannot answer now."""


class Patience(Retries):
    """A full server is asked as often as it takes, and one that is away for about a minute."""

    def pause(self, attempt: int, error: ChoirError) -> float | None:
        """See `Retries.pause`."""
        if not isinstance(error, RateLimited):
            return super().pause(attempt, error)
        if error.retry_after is None:
            return super().pause(min(attempt, self.attempts - 1), error)
        return min(error.retry_after, LONGEST_PAUSE)


PATIENCE = Patience(attempts=8, first_pause=0.5, longest_pause=LONGEST_PAUSE)


class Asker(AsyncChoir):
    """A client whose answers are the server's documents as they are."""

    async def ask(self, request: Request) -> httpx.Response:
        """Return the server's answer, also a refusal. Raises ChoirError if there is none."""
        call = Call(
            "POST",
            request.url,
            _answer,
            json=request.body,
            answers=frozenset(range(400, 600)),
        )
        return await self._run(self._send(call))


def _answer(response: httpx.Response) -> httpx.Response:
    """Return a response that answers its request. Raises ChoirError for another one."""
    if answered_with_error(response):
        error = error_from_response(response)
        if isinstance(error, NO_ANSWERS):
            raise error
    return response


@dataclass
class Counts:
    """What has become of the lines of a batch."""

    before: int = 0
    """Answered before this run."""
    refused_before: int = 0
    """Those of them that the server answered with an error."""
    answered: int = 0
    refused: int = 0
    """Answered by the server with an error."""
    bad: int = 0
    """Not sent, because they are no requests."""

    @property
    def done(self) -> int:
        return self.before + self.answered + self.refused + self.bad


async def ask_all(
    asker: Asker,
    lines: Iterator[Request | BadLine],
    answers: Answers,
    counts: Counts,
    concurrency: int,
    show: Callable[[Counts], None],
) -> None:
    """Answer all lines, at most `concurrency` at once. `show` is told the counts after each.

    Ends at the first request that gets no answer, and raises its ChoirError: those behind it would get none either."""

    async def work() -> None:
        for line in lines:
            if answers.has(line):
                counts.before += 1
                counts.refused_before += answers.refused(line)
            elif isinstance(line, BadLine):
                answers.leave_out(line)
                counts.bad += 1
            else:
                response = await asker.ask(line)
                answers.add(line, response)
                refused = answered_with_error(response)
                counts.refused += refused
                counts.answered += not refused
            show(counts)

    workers = [asyncio.create_task(work()) for _ in range(concurrency)]
    try:
        await asyncio.gather(*workers)
    finally:
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)

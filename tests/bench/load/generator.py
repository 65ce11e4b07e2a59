"""Sends requests from a process of its own, so that the measured server does not wait for the test.

    python -m tests.bench.load.generator URL --body JSON --seconds 20 (--clients 2 | --rate 50)

prints one JSON list with `[second of the start, seconds taken, status]` for each request. With `--clients`, each client
sends its next request after an answer, with `--rate`, so many requests a second begin, whatever the answers."""

import argparse
import asyncio
import itertools
import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import httpx


@dataclass(frozen=True)
class Sent:
    """One request: when it began, in seconds since the first, how long it took, and its status."""

    at: float
    seconds: float
    status: int


def sent(
    url: str, body: Mapping[str, Any], seconds: float, *, clients: int = 0, rate: float = 0
) -> "subprocess.Popen[str]":
    """Start the generator for one of the two ways. `results` waits for it."""
    how = ["--clients", str(clients)] if clients else ["--rate", str(rate)]
    command = [sys.executable, "-m", "tests.bench.load.generator", url, "--body", json.dumps(body)]
    return subprocess.Popen(
        [*command, "--seconds", str(seconds), *how], stdout=subprocess.PIPE, text=True
    )


def results(generator: "subprocess.Popen[str]") -> list[Sent]:
    """Return what a generator has sent, once it has ended."""
    output, _ = generator.communicate()
    assert generator.returncode == 0
    return [Sent(*each) for each in json.loads(output)]


class _Generator:
    def __init__(self, http: httpx.AsyncClient, url: str, body: dict[str, Any]) -> None:
        self._http = http
        self._url = url
        self._body = body
        self._numbers = itertools.count()
        self._began = perf_counter()
        self.sent: list[tuple[float, float, int]] = []

    @property
    def now(self) -> float:
        return perf_counter() - self._began

    async def ask(self) -> None:
        """Send one request. Its number makes the text new, so that no prompt comes out of the prefix cache."""
        body = dict(self._body)
        for name in ("prompt", "input"):
            if name in body:
                body[name] = f"{next(self._numbers)} {body[name]}"
        began = self.now
        answer = await self._http.post(self._url, json=body)
        self.sent.append((began, self.now - began, answer.status_code))

    async def client(self, until: float) -> None:
        while self.now < until:
            await self.ask()

    async def at_a_rate(self, rate: float, until: float) -> None:
        async with asyncio.TaskGroup() as group:
            for number in itertools.count():
                begins = number / rate
                if begins >= until:
                    return
                await asyncio.sleep(max(0.0, begins - self.now))
                group.create_task(self.ask())


async def _main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("--body", type=json.loads, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--clients", type=int, default=0)
    parser.add_argument("--rate", type=float, default=0)
    given = parser.parse_args()
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=200)
    async with httpx.AsyncClient(timeout=120, limits=limits, trust_env=False) as http:
        generator = _Generator(http, given.url, given.body)
        if given.rate:
            await generator.at_a_rate(given.rate, given.seconds)
        else:
            await asyncio.gather(*(generator.client(given.seconds) for _ in range(given.clients)))
    print(json.dumps(generator.sent))


if __name__ == "__main__":
    asyncio.run(_main())

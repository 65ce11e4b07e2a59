"""Steady load by the Python client, from a process of its own: `python -m tests.cluster.load URL MODEL CLIENTS`.

Each client sends one prediction after another with the client's default retries, at most ten a second. It prints its
figures as a JSON object for each line that it reads, and ends with its input."""

import json
import sys
import threading
import time
from dataclasses import asdict, dataclass, field

import httpx

from choir_client import Choir, ChoirError

PACE = 0.1
"""Least seconds from one request of a client to the next, so that the load does not compete with the servers."""


@dataclass
class Figures:
    """What all clients together have seen."""

    requests: int = 0
    retried: int = 0
    """Requests that were sent more than once."""
    failures: list[str] = field(default_factory=list)
    longest: float = 0.0
    """The most seconds that one request has taken, its retries included."""
    again: list[str] = field(default_factory=list)
    """Why requests were sent again."""


class Counting(httpx.HTTPTransport):
    """Counts how often one request is sent, and notes what was wrong."""

    sent = 0

    def __init__(self) -> None:
        super().__init__()
        self.wrong: list[str] = []

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self.sent += 1
        try:
            response = super().handle_request(request)
        except httpx.TransportError as error:
            self.wrong.append(repr(error))
            raise
        if response.status_code != 200:
            self.wrong.append(f"{response.status_code} {response.read()[:200]!r}")
        return response


def client(url: str, model: str, figures: Figures, lock: threading.Lock) -> None:
    """Send predictions until the process ends."""
    transport = Counting()
    with Choir(url, transport=transport) as choir:
        while True:
            transport.sent, transport.wrong = 0, []
            began, failure = time.monotonic(), None
            try:
                choir.predict(model, "where is my card")
            except ChoirError as error:
                failure = f"{type(error).__name__}: {error}"
            seconds = time.monotonic() - began
            with lock:
                figures.requests += 1
                figures.retried += transport.sent > 1
                figures.longest = max(figures.longest, seconds)
                figures.again += transport.wrong
                if failure is not None:
                    figures.failures.append(failure)
            time.sleep(max(0.0, PACE - seconds))


def main() -> None:
    url, model, clients = sys.argv[1], sys.argv[2], int(sys.argv[3])
    figures, lock = Figures(), threading.Lock()
    for _ in range(clients):
        threading.Thread(target=client, args=(url, model, figures, lock), daemon=True).start()
    for _ in sys.stdin:
        with lock:
            print(json.dumps(asdict(figures)), flush=True)


if __name__ == "__main__":
    main()

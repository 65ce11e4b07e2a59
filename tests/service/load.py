"""Clients that check every answer against the PEFT reference of the very adapters it names."""

import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import httpx

TOLERANCE = 1e-3

References = Mapping[str, Mapping[str, Sequence[float]]]
"""Digest of an adapter -> text -> its probabilities in the ensemble's order of labels, by PEFT."""


@dataclass
class Load:
    """Threads that send one prediction after another until told to stop. Texts that are data URLs are images."""

    url: str
    model: str
    texts: Sequence[str]
    labels: Sequence[str]
    references: References
    clients: int = 8
    requests: int = 0
    failures: list[str] = field(default_factory=list)
    versions: Counter[str] = field(default_factory=Counter)
    seconds: list[tuple[float, float]] = field(default_factory=list)
    """For each request: when it ended, and how long it took."""

    def __enter__(self) -> "Load":
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._threads = [
            threading.Thread(target=self._client, args=(number,)) for number in range(self.clients)
        ]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def wait_for(self, requests: int) -> None:
        """Wait until that many more requests are answered."""
        goal = self.requests + requests
        while self.requests < goal and any(thread.is_alive() for thread in self._threads):
            time.sleep(0.01)

    def _client(self, number: int) -> None:
        with httpx.Client(base_url=self.url, timeout=60) as http:
            turn = number
            while not self._stop.is_set():
                text = self.texts[turn % len(self.texts)]
                turn += 1
                started = time.monotonic()
                problem = self._ask(http, text)
                ended = time.monotonic()
                with self._lock:
                    self.requests += 1
                    self.seconds.append((ended, ended - started))
                    if problem:
                        self.failures.append(problem)

    def _ask(self, http: httpx.Client, text: str) -> str | None:
        """Return what is wrong with the answer, or None."""
        asked = {"image": text} if text.startswith("data:") else text
        try:
            response = http.post(
                "/v1/predict", json={"model": self.model, "input": asked, "return_members": True}
            )
        except httpx.HTTPError as error:
            return f"{type(error).__name__}: {error}"
        if response.status_code != 200:
            return f"{response.status_code}: {response.text}"
        answer = response.json()
        with self._lock:
            self.versions[answer["model"]] += 1
        return wrong_members(answer["data"][0], text, self.labels, self.references)


def wrong_members(
    row: Mapping[str, object], text: str, labels: Sequence[str], references: References
) -> str | None:
    """Return the first member whose probabilities are not those of the adapter that it names."""
    for member in row["members"]:  # type: ignore[attr-defined]
        (adapter,) = member["adapters"]
        expected = references[adapter["digest"]][text]
        given = [member["probabilities"][label] for label in labels]
        error = max(abs(a - b) for a, b in zip(given, expected, strict=True))
        if error > TOLERANCE:
            return f"{member['name']} ({adapter['digest'][:19]}) is off by {error:.4f} for {text!r}"
    return None

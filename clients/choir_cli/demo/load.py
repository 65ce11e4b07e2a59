"""Clients that send requests without a pause while a swap takes place."""

import itertools
import threading
import time
from collections import Counter
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from choir_client import Choir, ChoirError, Retries


class Load:
    """Runs `clients` threads that predict one text after another while the context is open.

    The threads do not retry, so every failure is counted.
    """

    def __init__(self, url: str, model: str, texts: Sequence[str], clients: int = 4) -> None:
        self.failures: list[str] = []
        self.versions: Counter[str] = Counter()
        self._progress = threading.Condition()
        self._stopping = threading.Event()
        self._threads = [
            threading.Thread(target=self._ask, args=(url, model, texts[i::clients]), daemon=True)
            for i in range(clients)
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    @property
    def requests(self) -> int:
        """The number of requests that have ended."""
        return self.versions.total() + len(self.failures)

    def wait_for(self, requests: int, within: float = 60.0) -> None:
        """Wait until `requests` more have ended. Raises ChoirError if that takes longer than `within` seconds."""
        with self._progress:
            goal = self.requests + requests
            if not self._progress.wait_for(lambda: self.requests >= goal, within):
                raise ChoirError(f"fewer than {requests} requests ended within {within:.0f} s")

    def _ask(self, url: str, model: str, texts: Sequence[str]) -> None:
        with Choir(url, retries=Retries(attempts=1)) as choir:
            for text in itertools.cycle(texts):
                if self._stopping.is_set():
                    return
                try:
                    outcome, failed = choir.predict(model, text).model, False
                except ChoirError as error:
                    outcome, failed = str(error), True
                with self._progress:
                    if failed:
                        self.failures.append(outcome)
                    else:
                        self.versions[outcome] += 1
                    self._progress.notify_all()
                if failed:
                    # Do not send thousands of requests a second to a server that refuses at once.
                    time.sleep(0.05)

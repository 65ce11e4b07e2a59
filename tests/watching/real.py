"""What tests do with a whole server: load, swaps, and processes that hang."""

import contextlib
import itertools
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import numpy as np
import psutil

from serve.fusion.drift.baseline import Baseline
from serve.fusion.drift.figures import AnswerFigures
from serve.manifest import Ensemble
from tests.service.running import Service

WORDS = [
    "where",
    "my",
    "card",
    "transfer",
    "top",
    "up",
    "cancel",
    "payment",
    "lost",
    "abroad",
    "pending",
    "late",
    "account",
    "fee",
]
TEXTS = [" ".join(pair) for pair in itertools.permutations(WORDS, 2)][:160]
"""What the baseline is of."""


class Clients:
    """Threads that send one request after another until they are told to stop."""

    def __init__(self, service: Service, count: int, body: Callable[[], dict[str, Any]]) -> None:
        self._service = service
        self._body = body
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._send) for _ in range(count)]

    def __enter__(self) -> None:
        for thread in self._threads:
            thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _send(self) -> None:
        with httpx.Client(base_url=self._service.url, timeout=60) as http:
            while not self._stop.wait(0.05):
                body = self._body()
                path = "/v1/predict" if "input" in body else "/v1/completions"
                with contextlib.suppress(httpx.HTTPError):
                    http.post(path, json=body)


def predicting(service: Service, texts: list[str], count: int = 2) -> Clients:
    """Each request asks about ten texts."""
    turns = itertools.cycle(range(0, len(texts), 10))
    lock = threading.Lock()

    def body() -> dict[str, Any]:
        with lock:
            start = next(turns)
        return {"model": "intents", "input": texts[start : start + 10]}

    return Clients(service, count, body)


def writing(service: Service, model: str = "replies/a") -> Clients:
    body = {"model": model, "prompt": "x", "max_tokens": 2, "stream": True}
    return Clients(service, 1, lambda: body)


@contextlib.contextmanager
def frozen(*processes: psutil.Process) -> Iterator[None]:
    """Stop processes, as a machine that hangs does."""
    for process in processes:
        process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        for process in processes:
            process.send_signal(signal.SIGCONT)


def swap(service: Service, body: dict[str, Any], wait: bool = True) -> dict[str, Any]:
    answer = service.post(f"/v1/ensembles/intents/swap?wait={str(wait).lower()}", body)
    assert answer.status_code in (200, 202), answer.text
    swapped: dict[str, Any] = answer.json()
    return swapped


def with_baseline(service: Service, ensemble: Ensemble) -> dict[str, Any]:
    """The manifest with the baseline of what the server answers to the texts."""
    body = {"model": "intents", "input": TEXTS, "return_members": True}
    rows = service.post("/v1/predict", body).json()["data"]
    labels = ensemble.labels or []
    winners = [labels.index(row["label"]) for row in rows]
    same = [[own["label"] == row["label"] for own in row["members"]] for row in rows]
    figures = AnswerFigures(
        np.mean(same, axis=1),
        np.array([row["entropy"] for row in rows]),
        np.eye(len(labels), dtype=np.bool_)[winners],
    )
    manifest = Baseline.measured(ensemble, figures).written(ensemble)
    dumped: dict[str, Any] = manifest.model_dump(mode="json", exclude_none=True)
    return dumped

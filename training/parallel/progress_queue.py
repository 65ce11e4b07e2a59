"""The progress queue: machines that train send reports, and the machine that started the run shows them."""

import contextlib
import math
import threading
import time
from typing import Any, Self

import ray
from ray.util.queue import Empty, Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from training.progress import Watch

EVERY_SECONDS = 0.2
"""The least time between two reports on the same work, and the time between two reads of the queue."""


class ProgressQueue:
    """The receiving end: passes reports on to a Watch."""

    def __init__(self, watch: Watch) -> None:
        here = ray.get_runtime_context().get_node_id()
        self.queue = Queue(
            actor_options={
                "num_cpus": 0,
                "scheduling_strategy": NodeAffinitySchedulingStrategy(here, soft=False),
            }
        )
        self._watch = watch
        self._reading = threading.Lock()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        with contextlib.suppress(ray.exceptions.RayError):
            self.queue.shutdown()

    def catch_up(self) -> None:
        """Pass on all reports that are in the queue."""
        with self._reading, contextlib.suppress(Empty, ray.exceptions.RayError):
            while True:
                report, arguments = self.queue.get_nowait()
                getattr(self._watch, report)(*arguments)

    def _follow(self) -> None:
        while not self._over.wait(EVERY_SECONDS):
            self.catch_up()


class ProgressSender:
    """The sending end, which is a Watch too. If the queue is gone, reports are lost and training goes on."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue
        self._sent: dict[str, float] = {}
        """When the last step of each piece of work was sent."""
        self._held: dict[str, int] = {}
        """The steps that are done but not sent yet, for each piece of work."""

    def begin(self, title: str, total: int, done: int = 0) -> None:
        self._held.pop(title, None)
        self._put("begin", title, total, done)

    def reach(self, title: str, done: int, loss: float | None = None) -> None:
        now = time.monotonic()
        if loss is None and now - self._sent.get(title, -math.inf) < EVERY_SECONDS:
            self._held[title] = done
            return
        self._held.pop(title, None)
        self._sent[title] = now
        self._put("reach", title, done, loss)

    def end(self, title: str) -> None:
        self.flush()
        self._put("end", title)

    def flush(self) -> None:
        """Send the steps that were held back."""
        for title, done in self._held.items():
            self._put("reach", title, done)
        self._held.clear()

    def _put(self, report: str, *arguments: Any) -> None:
        with contextlib.suppress(ray.exceptions.RayError):
            self._queue.put_nowait((report, arguments))

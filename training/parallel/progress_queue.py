"""Progress from the machines that train to the one that shows it, through a queue."""

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
"""Between two reports on the same work, and between two looks at them."""


class ProgressQueue:
    """The receiving end."""

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
        """Pass on all that was reported until now."""
        with self._reading, contextlib.suppress(Empty, ray.exceptions.RayError):
            while True:
                report, arguments = self.queue.get_nowait()
                getattr(self._watch, report)(*arguments)

    def _follow(self) -> None:
        while not self._over.wait(EVERY_SECONDS):
            self.catch_up()


class ProgressSender:
    """The sending end: a Watch. Training does not fail because nobody hears of it."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue
        self._sent: dict[str, float] = {}
        """When each piece of work was last reported on."""
        self._held: dict[str, int] = {}
        """How far work has come of which that is not reported yet."""

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
        """Report the last steps, which may have followed too soon on others."""
        for title, done in self._held.items():
            self._put("reach", title, done)
        self._held.clear()

    def _put(self, report: str, *arguments: Any) -> None:
        with contextlib.suppress(ray.exceptions.RayError):
            self._queue.put_nowait((report, arguments))

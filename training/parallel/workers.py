"""Training on the cluster: each job is one Ray task, with the CPUs and the GPU of a member."""

import contextlib
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow
import ray
import torch
from datasets import Dataset
from ray.util.queue import Queue

from serve.errors import first_line
from training.execution.jobs import Job
from training.parallel.cluster import machines
from training.parallel.options import ClusterError
from training.parallel.progress_queue import ProgressQueue, ProgressSender
from training.progress import quiet_libraries

RETRIES = 3
"""How often a job is begun again whose process or machine died; it goes on from its last epoch."""


@dataclass(frozen=True)
class Share:
    """What of the cluster one member gets."""

    cpus: int
    gpus: int

    @classmethod
    def of_cluster(cls, members: int | None) -> "Share":
        """A GPU where there are any; of the CPUs `OMP_NUM_THREADS`, or an equal share if `members` are trained at once,
        or one. Never more than the largest machine has."""
        nodes = [node["Resources"] for node in machines()]
        gpus = 1 if any(node.get("GPU", 0) >= 1 for node in nodes) else 0
        hosts = [node for node in nodes if node.get("GPU", 0) >= gpus]
        total, largest = sum(node["CPU"] for node in hosts), max(node["CPU"] for node in hosts)
        asked = os.environ.get("OMP_NUM_THREADS", "")
        cpus = int(asked) if asked.isdecimal() else int(total // members) if members else 1
        return cls(max(1, min(cpus, int(largest))), gpus)


class RayWorkers:
    """Has jobs done on the cluster, for threads that wait for them."""

    def __init__(self, rows: Dataset, progress_queue: ProgressQueue, members: int | None) -> None:
        self._rows = ray.put(rows.with_format("arrow")[:])
        self._progress_queue = progress_queue
        self._share = Share.of_cluster(members)
        self._slots = threading.Semaphore(members) if members else contextlib.nullcontext()
        self._lock = threading.Lock()
        self._running: set[Any] = set()
        self._stopped = False

    def train(self, job: Job) -> None:
        with self._slots, self._begun(job) as task:
            try:
                ray.get(task)
            except ray.exceptions.RayTaskError as error:
                raise error.cause from error
            except ray.exceptions.RayError as error:
                raise ClusterError(
                    f"{job.title}: the process that trained it died, and died again when it was begun anew "
                    f"({first_line(error)}); --resume goes on from the last epoch"
                ) from error
            finally:
                self._progress_queue.catch_up()

    def stop(self) -> None:
        """End what runs and begin nothing more."""
        with self._lock:
            self._stopped = True
            for task in self._running:
                ray.cancel(task, force=True)

    @contextlib.contextmanager
    def _begun(self, job: Job) -> Iterator[Any]:
        with self._lock:
            if self._stopped:
                raise ClusterError(f"{job.title}: the run was stopped before this was trained")
            share = self._share
            task = _train.options(num_cpus=share.cpus, num_gpus=share.gpus, name=job.title).remote(
                job, self._rows, self._progress_queue.queue, share.cpus
            )
            self._running.add(task)
        try:
            yield task
        finally:
            with self._lock:
                self._running.discard(task)


@ray.remote(max_retries=RETRIES)
def _train(job: Job, rows: pyarrow.Table, queue: Queue, threads: int) -> None:
    become_trainer(threads)
    reports = ProgressSender(queue)
    job.train(Dataset(rows), reports)
    reports.flush()


def become_trainer(threads: int) -> None:
    """Let this process of Ray's say nothing, and compute with so many threads.

    Sums come out in another order with another number of them."""
    quiet_libraries()
    torch.set_num_threads(threads)

"""Workers on the Ray cluster. Each job is one Ray task with a member's share of CPUs and GPUs."""

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
"""How often a job is restarted after its process or machine died. It continues after its last finished epoch."""


@dataclass(frozen=True)
class Share:
    """The CPUs and GPUs of the cluster that one member gets."""

    cpus: int
    gpus: int

    @classmethod
    def of_cluster(cls, members: int | None) -> "Share":
        """Return the share of each member when `members` are trained at once.

        It has one GPU if the cluster has any. It has `OMP_NUM_THREADS` CPUs if that is set, else an equal share of all
        CPUs if `members` is given, else one CPU; never more than the largest machine has."""
        nodes = [node["Resources"] for node in machines()]
        gpus = 1 if any(node.get("GPU", 0) >= 1 for node in nodes) else 0
        hosts = [node for node in nodes if node.get("GPU", 0) >= gpus]
        total, largest = sum(node["CPU"] for node in hosts), max(node["CPU"] for node in hosts)
        asked = os.environ.get("OMP_NUM_THREADS", "")
        cpus = int(asked) if asked.isdecimal() else int(total // members) if members else 1
        return cls(max(1, min(cpus, int(largest))), gpus)


class RayWorkers:
    """Trains jobs on the cluster. Several threads may wait for their jobs at once."""

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
                    f"{job.title}: the process that trained it died, and died again after each restart "
                    f"({first_line(error)}); --resume continues after the last finished epoch"
                ) from error
            finally:
                self._progress_queue.catch_up()

    def stop(self) -> None:
        """Cancel running jobs, and start no more."""
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
    """Prepare a Ray worker process for training: silence the libraries and set torch's number of threads.

    The number must be the same in every run for equal results: sums are rounded differently with another one."""
    quiet_libraries()
    torch.set_num_threads(threads)

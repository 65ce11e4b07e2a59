"""The Ray cluster that trains: joins or starts it, lists its machines, and checks that they see the bundle."""

import contextlib
import logging
import os
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from serve.errors import first_line
from training.parallel.options import ClusterError, Parallel

PROBE_SECONDS = 120.0
"""How long a machine may take to say whether it sees a file. Starting its first Python process takes a while."""


@contextlib.contextmanager
def joined(options: Parallel) -> Iterator[None]:
    """Connect to the cluster of `options`, or start one here. At the end, disconnect, and stop a cluster that was
    started here. Raises ClusterError."""
    common: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if options.address is None:
        common |= {
            "_node_ip_address": "127.0.0.1",
            "include_dashboard": False,
            "object_store_memory": 256 << 20,
            "num_cpus": max(options.members or 1, os.cpu_count() or 1),
        }
    # "local" starts a new cluster, whatever RAY_ADDRESS or a file of another Ray says.
    try:
        ray.init(address=options.address or "local", namespace="choir-train", **common)
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        what = f"join the Ray cluster at {options.address}" if options.address else "start Ray here"
        raise ClusterError(f"Cannot {what}: {first_line(error)}") from error
    try:
        yield
    finally:
        ray.shutdown()


def machines() -> list[dict[str, Any]]:
    """Return Ray's nodes that can train: they are alive and have at least one CPU."""
    return [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) >= 1]


def demand_shared(folder: Path) -> None:
    """Check that every machine that can train sees what this one writes to `folder`. Raises ClusterError otherwise."""
    if not machines():
        raise ClusterError("The Ray cluster has no machine with a CPU; add one (ray start)")
    marker = folder / f"seen-{uuid.uuid4().hex}"
    marker.touch()
    try:
        demand([marker], f"The folder {folder} is written here and cannot be seen")
    finally:
        marker.unlink()


def demand(paths: Sequence[Path], complaint: str | None = None) -> None:
    """Check that every machine that can train has all `paths`. Raises ClusterError otherwise.

    `complaint` begins the message; by default it names the first missing path."""
    # A list, not a dictionary: several machines may have one address, for example containers of one host.
    asked = [
        (
            node["NodeManagerAddress"],
            _missing.options(
                scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            ).remote([str(path) for path in paths]),
        )
        for node in machines()
    ]
    for address, answer in asked:
        try:
            missing = ray.get(answer, timeout=PROBE_SECONDS)
        except ray.exceptions.GetTimeoutError:
            raise ClusterError(
                f"The machine {address} of the Ray cluster did not answer within {PROBE_SECONDS:g} s"
            ) from None
        except ray.exceptions.RayError as error:
            raise ClusterError(
                f"The machine {address} of the Ray cluster cannot run Choir; install the same version there "
                f"({first_line(error)})"
            ) from error
        if missing:
            said = complaint or f"{missing[0]} is not found"
            raise ClusterError(
                f"{said} on the machine {address} of the Ray cluster: several machines need a shared file system, with "
                "the bundle, the base and the teachers under the same paths"
            )


@ray.remote(num_cpus=0, max_retries=0)
def _missing(paths: Sequence[str]) -> list[str]:
    """Return the paths that this machine does not see."""
    for path in paths:
        # A network file system may answer from its cache until the folder is listed again.
        with contextlib.suppress(OSError):
            os.listdir(os.path.dirname(path))
    return [path for path in paths if not os.path.exists(path)]

"""The Ray cluster that trains: joined, or started on this machine; what it has, and whether it sees the bundle."""

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
"""How long every machine has to say whether it sees a file; its first Python process takes a while."""


@contextlib.contextmanager
def joined(options: Parallel) -> Iterator[None]:
    """Ray, connected; at the end it goes on if it ran before. Raises ClusterError."""
    common: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if options.address is None:
        common |= {
            "_node_ip_address": "127.0.0.1",
            "include_dashboard": False,
            "object_store_memory": 256 << 20,
            "num_cpus": max(options.members or 1, os.cpu_count() or 1),
        }
    # "local": never a cluster that RAY_ADDRESS, or a file that another Ray left behind, names.
    try:
        ray.init(address=options.address or "local", namespace="choir-train", **common)
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        where = f"joined at {options.address}" if options.address else "started here"
        raise ClusterError(f"No Ray cluster can be {where}: {first_line(error)}") from error
    try:
        yield
    finally:
        ray.shutdown()


def machines() -> list[dict[str, Any]]:
    """Those that can train: alive, and with a CPU to give."""
    return [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) >= 1]


def demand_shared(folder: Path) -> None:
    """Raise ClusterError unless every machine that can train sees what this one writes into `folder`."""
    if not machines():
        raise ClusterError("The Ray cluster has no machine with a CPU to give; add one (ray start)")
    marker = folder / f"seen-{uuid.uuid4().hex}"
    marker.touch()
    try:
        demand([marker], f"The folder {folder} is written here and not seen")
    finally:
        marker.unlink()


def demand(paths: Sequence[Path], complaint: str | None = None) -> None:
    """Raise ClusterError unless every machine that can train has all `paths`."""
    # Several may have one address: containers of a host, say.
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
    """Those that this machine does not see."""
    for path in paths:
        # A network file system that has not listed a folder lately may answer from memory.
        with contextlib.suppress(OSError):
            os.listdir(os.path.dirname(path))
    return [path for path in paths if not os.path.exists(path)]

"""Ray as `choir serve` starts it on this machine."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import ray

from serve.graph import cluster
from serve.graph.lifecycle import ServerError

ELSEWHERE = "192.0.2.1:6379"
"""An address that no machine has (RFC 5737)."""
START = """
import ray
from serve.graph.cluster import _own
from serve.graph.run_folder import run_folder
with run_folder() as folder, _own(folder):
    print(len(ray.nodes()), "node at", ray.get_runtime_context().gcs_address)
"""

ASK = """
import os
from serve import ray_options
from serve.graph.run_folder import run_folder
with run_folder() as folder:
    os.environ.update(ray_options.own_cluster() | ray_options.fast_serve(folder))
    from ray import serve as ray_serve
    from serve.graph.cluster import _own, controller
    @ray_serve.deployment(name="Controller", ray_actor_options={"num_cpus": 0})
    class Controller:
        async def ensembles(self):
            return "seen"
        async def shut_down(self):
            return "left"
    with _own(folder):
        ray_serve.start(proxy_location="Disabled")
        ray_serve.run(Controller.bind(), name="choir", route_prefix=None)
        print(controller().ensembles.remote().result(timeout_s=60))
        print(controller().shut_down.remote().result(timeout_s=60))
"""


def test_the_controller_can_be_asked_again_and_again_where_no_event_loop_runs() -> None:
    """As `choir serve` asks it: when it is ready, and when it stops."""
    done = subprocess.run(
        [sys.executable, "-c", ASK],
        env={**os.environ, "CHOIR_HAPROXY": "0"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.stdout.splitlines()[-2:] == ["seen", "left"], done.stderr


@pytest.mark.slow
def test_another_cluster_on_this_machine_is_left_alone() -> None:
    """As where RAY_ADDRESS, or the file of a Ray that has died, names one."""
    done = subprocess.run(
        [sys.executable, "-c", START],
        env={**os.environ, "RAY_ADDRESS": ELSEWHERE},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "1 node at" in done.stdout
    assert ELSEWHERE not in done.stdout


@pytest.mark.parametrize("late", [1, 2])
def test_a_ray_that_misses_its_own_limit_is_started_once_more(
    late: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only Ray's start is stood in for: it cannot be made late at will."""
    starts: list[str] = []

    def init(**options: Any) -> None:
        starts.append(options["_temp_dir"])
        if len(starts) <= late:
            raise Exception("The current node timed out during startup. This could happen ...")

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(cluster, "_end", lambda: None)
    if late < 2:
        with cluster._own(tmp_path):
            pass
    else:
        with (
            pytest.raises(ServerError, match="did not start within 30 s, 2 times"),
            cluster._own(tmp_path),
        ):
            pass
    assert len(starts) == 2

"""Ray as `choir serve` starts it on this machine."""

import os
import subprocess
import sys

ELSEWHERE = "192.0.2.1:6379"
"""An address that no machine has (RFC 5737)."""
START = """
import ray
from serve.graph.cluster import _own
from serve.graph.run_folder import run_folder
with run_folder() as folder, _own(folder):
    print(len(ray.nodes()), "node at", ray.get_runtime_context().gcs_address)
"""


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

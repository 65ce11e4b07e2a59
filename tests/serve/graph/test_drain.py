"""An engine that Ray Serve stops finishes what it has begun, and gets no new calls."""

import json
import subprocess
import sys
import tempfile

import pytest


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_an_engine_that_is_stopped_under_load_loses_no_call() -> None:
    with tempfile.TemporaryDirectory(prefix="", dir="/tmp") as folder:
        command = [sys.executable, "-m", "tests.serve.graph.draining", folder]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr
    # Ray writes to the same output.
    said = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))
    assert len(said["engines"]) == 2
    assert {*said["begun"]} == {*said["engines"]}  # both had calls, and both answered them
    assert all(isinstance(answer, int) for answer in said["later"])  # else the name of an error
    assert len({*said["later"][-20:]}) == 1

"""Ray's own route is taken out of the configuration that HAProxy reads."""

import os
import subprocess
from pathlib import Path

import pytest
from ray.serve._private.haproxy_templates import HAPROXY_CONFIG_TEMPLATE

from serve.ray_options import (
    ARRIVED_HEADER,
    RAYS_ROUTES,
    engine_environment,
    engine_threads,
    fast_serve,
)


@pytest.fixture
def options(tmp_path: Path) -> dict[str, str]:
    return fast_serve(tmp_path)


def test_haproxy_answers_no_route_of_rays(options: dict[str, str]) -> None:
    """Of Ray's template only the rule itself: the template is the installed Ray's, so that a new one is noticed."""
    (rule,) = [line for line in HAPROXY_CONFIG_TEMPLATE.splitlines() if "acl routes" in line]
    front = f"frontend ray\n    mode http\n    bind 127.0.0.1:1\n    timeout client 1s\n{rule}\n"
    answer = "    http-request return status 200 content-type text/plain string there if routes\n"
    config = Path(options["RAY_SERVE_HAPROXY_CONFIG_FILE_LOC"])
    config.write_text(front + answer)
    checked = subprocess.run(
        [options["RAY_SERVE_HAPROXY_BINARY_PATH"], "-c", "-f", str(config)], capture_output=True
    )
    assert checked.returncode == 0, checked.stderr.decode()
    assert f"{RAYS_ROUTES}\\ off" in config.read_text()
    assert f"{RAYS_ROUTES}\n" not in config.read_text()


def test_haproxy_tells_when_a_request_arrived(options: dict[str, str]) -> None:
    (place,) = [each for each in HAPROXY_CONFIG_TEMPLATE.splitlines() if "frontend http_f" in each]
    config = Path(options["RAY_SERVE_HAPROXY_CONFIG_FILE_LOC"])
    config.write_text(f"{place}\n    mode http\n    timeout client 1s\n    bind 127.0.0.1:1\n")
    checked = subprocess.run(
        [options["RAY_SERVE_HAPROXY_BINARY_PATH"], "-c", "-f", str(config)], capture_output=True
    )
    assert checked.returncode == 0, checked.stderr.decode()
    assert config.read_text().splitlines()[-1].split()[2] == ARRIVED_HEADER


@pytest.mark.parametrize(("cores", "engines", "threads"), [(16, 2, "7"), (2, 2, "1"), (1, 1, "1")])
def test_engines_share_the_cores_of_the_machine_that_they_run_on(
    monkeypatch: pytest.MonkeyPatch, cores: int, engines: int, threads: str
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    assert engine_threads(engines) == {"OMP_NUM_THREADS": threads}
    assert "OMP_NUM_THREADS" not in engine_environment(), "not decided where the graph is built"
    assert engine_environment("3")["OMP_NUM_THREADS"] == "3"

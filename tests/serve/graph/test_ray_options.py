"""Ray's own route is taken out of the configuration that HAProxy reads."""

import subprocess
from pathlib import Path

import pytest
from ray.serve._private.haproxy_templates import HAPROXY_CONFIG_TEMPLATE

from serve.ray_options import RAYS_ROUTES, fast_serve


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

"""Compose: what it mounts is there, and it is open to this machine alone."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
DEPLOYMENTS = ROOT / "deployments"


def test_compose_mounts_files_that_are_there_and_keeps_to_loopback() -> None:
    document: dict[str, Any] = yaml.safe_load((DEPLOYMENTS / "docker-compose.yml").read_text())
    services = document["services"]

    assert set(services) == {"choir", "prometheus", "grafana"}
    build = services["choir"]["build"]
    assert (DEPLOYMENTS / build["context"] / build["dockerfile"]).is_file()
    for service in services.values():
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])
        for volume in service["volumes"]:
            source = re.sub(r"\$\{[^}]*\}", "", volume).partition(":")[0]
            if source.startswith("."):
                assert (DEPLOYMENTS / source).exists(), source
            else:
                assert source in ("", *document["volumes"])
    scraped = yaml.safe_load((DEPLOYMENTS / "docker" / "prometheus.yml").read_text())
    assert scraped["scrape_configs"][0]["static_configs"] == [{"targets": ["choir:8000"]}]


def test_docker_compose_reads_it() -> None:
    command = ["docker", "compose", "-f", "deployments/docker-compose.yml", "config", "--quiet"]
    try:
        subprocess.run(["docker", "compose", "version"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("Docker's compose plugin is not installed")
    variables = {"CHOIR_BUNDLE": "/bundle", "CHOIR_ADMIN_TOKEN": "secret", "PATH": "/usr/bin:/bin"}
    read = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True)
    assert read.returncode == 0, read.stderr

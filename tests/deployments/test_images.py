"""Images: linted, and what they name is there."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DEPLOYMENTS = ROOT / "deployments"
LINTED = [
    *(DEPLOYMENTS / name for name in ("kuberay", "docker", "docker-compose.yml", "serve.yaml")),
    *(DEPLOYMENTS / "helm" / "choir").glob("*.yaml"),
]
DOCKERFILES = sorted((DEPLOYMENTS / "docker").glob("*.Dockerfile"))


def _program(name: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [Path(sys.executable).with_name(name), *arguments]
    return subprocess.run([*map(str, command)], cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.name)
def test_hadolint_finds_nothing(file: Path) -> None:
    found = _program("hadolint", file)
    assert found.returncode == 0, found.stdout


def test_yamllint_finds_nothing() -> None:
    found = _program("yamllint", "--strict", "-c", ".yamllint.yaml", *LINTED)
    assert found.returncode == 0, found.stdout


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.name)
def test_an_image_is_pinned_runs_without_root_and_has_what_the_wheel_is_built_from(
    file: Path,
) -> None:
    text = file.read_text(encoding="utf-8")

    assert re.search(r"^ARG PYTHON_IMAGE=python:3\.11\.\d+-", text, re.M)
    assert re.findall(r"^USER (.+)$", text, re.M) == ["10001"]
    assert text.index("\nUSER ") < text.index("\nENTRYPOINT ")
    assert "/ready" in re.search(r"^HEALTHCHECK (?:.*\\\n)*.*$", text, re.M)[0]  # type: ignore[index]
    copied = {
        name.rstrip("/")
        for line in re.findall(r"^COPY ([^-].*)$", text, re.M)
        for name in line.split()[:-1]
    }
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().split() if line[0] == "!"}
    assert copied == allowed
    assert all((ROOT / name).exists() for name in copied)
    locks = re.findall(r"-r (requirements/\S+)", text)
    assert locks
    assert text.count("--require-hashes") == len(locks)
    for lock in locks:
        pins = re.findall(
            r"^[a-z0-9._-]+==\S+ .*\\\n +--hash=sha256:", (ROOT / lock).read_text(), re.M
        )
        assert pins, lock

"""The temporary folder of a run is gone after it, and what killed runs left is gone after the next start."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from serve.graph.run_folder import LONGEST_PARENT, PREFIX, run_folder, sweep

RUN = """
import subprocess, sys, time
from serve.graph.run_folder import run_folder
with run_folder() as folder:
    child = subprocess.Popen([sys.executable, "-c", "import time; print(1, flush=True); time.sleep(600)"],
                             stdout=subprocess.PIPE)
    child.stdout.readline()
    print(folder, child.pid, flush=True)
    time.sleep(600)
"""
"""A server that runs until it is killed, with a process of its own."""


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder for temporary files with a short name."""
    folder = Path(tempfile.mkdtemp(prefix="c", dir="/tmp"))
    short = Path(str(folder)[:LONGEST_PARENT])
    folder.rename(short)
    yield short
    shutil.rmtree(short)


def test_temporary_files_lie_in_it_and_are_gone_after_it(
    short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(short))
    monkeypatch.setattr("tempfile.tempdir", None)
    with run_folder() as folder:
        assert folder.parent == short
        assert Path(tempfile.mkdtemp()).parent == folder
        made = [sys.executable, "-c", "import tempfile; print(tempfile.mkdtemp())"]
        child = subprocess.run(made, capture_output=True, text=True, check=True)
        assert Path(child.stdout.strip()).parent == folder
        assert folder.stat().st_mode & 0o777 == 0o700
    assert not list(short.iterdir())
    assert os.environ["TMPDIR"] == tempfile.gettempdir() == str(short)


def test_a_long_path_would_be_too_long_for_sockets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    with run_folder() as folder:
        assert folder.parent == Path("/tmp")
    assert not folder.exists()


def test_the_next_start_sweeps_what_a_killed_run_left(short: Path) -> None:
    environment = {**os.environ, "TMPDIR": str(short)}
    command = [sys.executable, "-c", RUN]
    run = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    assert run.stdout is not None
    folder, child = run.stdout.readline().split()
    sweep(short)
    assert Path(folder).exists()  # it lives
    run.kill()
    run.wait()
    run.stdout.close()
    (short / f"{PREFIX}begins").mkdir()
    (short / "another").mkdir()
    sweep(short)
    assert not Path(folder).exists()
    assert not psutil.pid_exists(int(child)) or psutil.Process(int(child)).status() == "zombie"
    assert {each.name for each in short.iterdir()} == {f"{PREFIX}begins", "another"}

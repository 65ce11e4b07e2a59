"""A real `choir serve` process: real Ray Serve, real vLLM, real HTTP."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

START_SECONDS = 420


@dataclass(frozen=True)
class Service:
    url: str
    log: Path
    process: "subprocess.Popen[bytes]"

    def post(self, path: str, body: object, **kwargs: object) -> httpx.Response:
        return httpx.post(self.url + path, json=body, timeout=120, **kwargs)  # type: ignore[arg-type]

    def get(self, path: str) -> httpx.Response:
        return httpx.get(self.url + path, timeout=30)

    def replicas(self, kind: str) -> list[psutil.Process]:
        """Return the processes of a deployment: `Engine`, for example."""
        family = psutil.Process(self.process.pid).children(recursive=True)
        title = f"ServeReplica:choir:{kind}"
        return [each for each in family if title in " ".join(_command_line(each))]


def _command_line(process: psutil.Process) -> list[str]:
    """Empty for one that has just ended."""
    try:
        return list(process.cmdline())
    except psutil.Error:
        return []


def kill(process: psutil.Process) -> None:
    """Kill a process and its children, as kill -9 does."""
    for each in (*process.children(recursive=True), process):
        each.kill()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def serving(*arguments: str | Path, log: Path) -> Iterator[Service]:
    """Start `choir serve ARGUMENTS`, wait until it is ready, and stop it with SIGTERM."""
    port = free_port()
    command: Sequence[str] = [
        *(sys.executable, "-m", "choir_cli.main", "serve"),
        *(str(argument) for argument in arguments),
        *("--port", str(port)),
    ]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env={**os.environ}
        )
    service = Service(f"http://127.0.0.1:{port}", log, process)
    try:
        _wait_until_ready(service)
        yield service
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=90)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
    assert process.returncode == 0, f"choir serve ended with {process.returncode}: {tail(log)}"


def _wait_until_ready(service: Service) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if service.process.poll() is not None:
            raise AssertionError(f"choir serve stopped while starting: {tail(service.log)}")
        with contextlib.suppress(httpx.TransportError):
            if service.get("/ready").status_code == 200:
                return
        time.sleep(0.5)
    raise AssertionError(f"not ready after {START_SECONDS} s: {tail(service.log)}")


def tail(log: Path) -> str:
    return log.read_text(errors="replace")[-4000:]

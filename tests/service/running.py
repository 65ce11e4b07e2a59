"""A real `choir serve` process: real Ray Serve, real vLLM, real HTTP."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
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
    temporary: Path
    """The folder for temporary files that the server was started with."""

    def post(self, path: str, body: object, **kwargs: object) -> httpx.Response:
        return httpx.post(self.url + path, json=body, timeout=120, **kwargs)  # type: ignore[arg-type]

    def get(self, path: str) -> httpx.Response:
        return httpx.get(self.url + path, timeout=30)

    @property
    def console(self) -> list[str]:
        """The lines that the server has shown so far."""
        return self.log.read_text(encoding="utf-8").splitlines()

    @property
    def logs(self) -> Path:
        """The folder of the log files, as the first line on the console names it."""
        return Path(self.console[0].removeprefix("The logs are in "))

    def stop(self) -> float:
        """Stop the server with SIGTERM, and return the seconds that it took."""
        began = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(timeout=90)
        return time.monotonic() - began

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
def serving(
    *arguments: str | Path, log: Path, program: str = "choir_cli.main"
) -> Iterator[Service]:
    """Start `choir serve ARGUMENTS`, wait until it is ready, and stop it with SIGTERM. `program`: the module that is
    run as `choir`."""
    port = free_port()
    command: Sequence[str] = [
        *(sys.executable, "-m", program, "serve"),
        *(str(argument) for argument in arguments),
        *("--port", str(port)),
    ]
    temporary = Path(tempfile.mkdtemp(prefix="", dir="/tmp"))
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "TMPDIR": str(temporary)},
        )
    service = Service(f"http://127.0.0.1:{port}", log, process, temporary)
    try:
        _wait_until_ready(service)
        yield service
    finally:
        try:
            if process.poll() is None:
                service.stop()
        except subprocess.TimeoutExpired:
            process.kill()
            raise
    assert process.returncode == 0, f"choir serve ended with {process.returncode}: {tail(log)}"
    assert foreign(service.console) == []
    assert os.listdir(temporary) == []
    temporary.rmdir()


CHOIRS = re.compile(
    r"""The\ logs\ are\ in\ /.+ | Starting\ Ray\ on\ this\ machine:\ .+ | Starting\ the\ engines
      | engine-(\S+-)?\d+\ is\ ready\ after\ \d+\ s\.
      | (engine-(\S+-)?\d+:\ )? (Importing\ vLLM | Loading\ the\ base | Warming\ up | Proving\ adapter\ \d+\ of\ \d+)
      | Choir\ answers\ on\ http://\S+ | \d{4}-\d\d-\d\d\ \d\d:\d\d:\d\d\ .+ | Stopping\.
      | WARNING:\ .+ | To\ serve\ what\ this\ start\ has\ brought,\ type | \ \ choir\ .+""",
    re.VERBOSE,
)
"""What Choir itself says on the console: the start, what happens afterwards with its time, and the stop."""


def foreign(console: list[str]) -> list[str]:
    """Return the lines that are not Choir's own: what Ray, vLLM or Python have said to the user."""
    return [line for line in console if not CHOIRS.fullmatch(line)]


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

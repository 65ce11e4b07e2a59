"""A cluster of nodes with the application of `deployments/serve.yaml` on it, as its operator deploys it."""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx
import psutil
import yaml

from serve.ray_options import own_cluster
from tests.service.running import free_port, tail

T = TypeVar("T")

MANIFEST = Path("deployments/serve.yaml")
PATIENCE = 540
"""Seconds to wait for what should happen: engines take minutes on a small machine that is busy."""


class Asked:
    """A helper process that answers each line that it is sent with a JSON object."""

    def __init__(self, module: str, *arguments: object, log: Path, env: dict[str, str]) -> None:
        with log.open("wb") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", module, *map(str, arguments)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=env,
            )
        self._log = log

    def ask(self, line: str | None = None) -> Any:
        """Send a line, and return the answer; None: return what it says by itself."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        if line is not None:
            self._process.stdin.write(f"{line}\n")
            self._process.stdin.flush()
        said = self._process.stdout.readline()
        assert said, tail(self._log)
        return json.loads(said)

    def end(self) -> None:
        """End it with its input."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()


@dataclass
class Nodes:
    """The nodes, and the application on them."""

    process: Asked
    head: int
    """The process id of its raylet."""
    workers: list[int]
    address: str
    dashboard: str
    url: str
    folder: Path
    env: dict[str, str]

    def deploy(self, settings: dict[str, Any]) -> None:
        """Hand `deployments/serve.yaml` to Ray with these settings, by `serve deploy`."""
        manifest = yaml.safe_load(MANIFEST.read_text())
        manifest["http_options"]["port"] = int(self.url.rpartition(":")[2])
        manifest["applications"][0]["args"] |= settings
        file = self.folder / "serve.yaml"
        file.write_text(yaml.safe_dump(manifest))
        command = [str(Path(sys.executable).parent / "serve"), "deploy", str(file)]
        done = subprocess.run(
            [*command, "--address", self.dashboard],
            env=self.env,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr

    def status(self) -> Any:
        """Return what Ray says of the application."""
        url = f"{self.dashboard}/api/serve/applications/"
        token = {"Authorization": f"Bearer {self.env['RAY_AUTH_TOKEN']}"}
        answer = httpx.get(url, headers=token, timeout=30).raise_for_status().json()
        return answer["applications"].get("choir", {"status": "absent", "message": ""})

    def replicas(self, kind: str) -> list[psutil.Process]:
        """Return the processes of a deployment on all nodes."""
        title = f"ServeReplica:choir:{kind}"
        found = []
        for raylet in (self.head, *self.workers):
            with contextlib.suppress(psutil.NoSuchProcess):
                for each in psutil.Process(raylet).children(recursive=True):
                    with contextlib.suppress(psutil.Error):
                        if title in " ".join(each.cmdline()):
                            found.append(each)
        return found

    def node_of(self, process: psutil.Process) -> int:
        """Return the process id of the raylet of a process."""
        parents = {parent.pid for parent in process.parents()}
        return next(raylet for raylet in (self.head, *self.workers) if raylet in parents)

    def ready(self) -> bool:
        with contextlib.suppress(httpx.HTTPError):
            return httpx.get(f"{self.url}/ready", timeout=10).status_code == 200
        return False

    def ensemble(self) -> Any:
        """Return the view of `intents`; None if it cannot be had now."""
        with contextlib.suppress(httpx.HTTPError):
            answer = httpx.get(f"{self.url}/v1/ensembles/intents", timeout=10)
            return answer.json() if answer.status_code == 200 else None
        return None

    def engines(self) -> list[str]:
        """Return the engines that hold the active version, as `engine/ordinal`."""
        found = self.ensemble()
        if found is None:
            return []
        (active,) = (v for v in found["versions"] if v["version"] == found["active_version"])
        return list(active["loaded_on"])


@contextlib.contextmanager
def nodes(folder: Path, workers: int, options: dict[str, str]) -> Iterator[Nodes]:
    """Start a head and `workers` more nodes. `options`: Ray's, of all nodes."""
    env = {**os.environ, **own_cluster(), **options}
    port = free_port()
    process = Asked(
        *("tests.cluster.nodes", folder / "ray", workers, port),
        log=folder / "nodes.log",
        env=env,
    )
    try:
        said = process.ask()
        yield Nodes(
            process,
            said["head"],
            said["workers"],
            said["address"],
            f"http://127.0.0.1:{port}",
            f"http://127.0.0.1:{free_port()}",
            folder,
            env,
        )
    finally:
        process.end()


def until(condition: Callable[[], T]) -> T:
    """Wait until the condition is true; return its value."""
    deadline = time.monotonic() + PATIENCE
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.2)
    return found

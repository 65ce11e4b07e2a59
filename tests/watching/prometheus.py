"""A real Prometheus with the project's own rules, which scrapes one server."""

import contextlib
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.service.running import free_port

DEPLOYMENTS = Path(__file__).parents[2] / "deployments"
RULES = DEPLOYMENTS / "prometheus" / "rules.yml"
MISSING = "Prometheus is not installed (Debian, Ubuntu: apt-get install prometheus)"
START_SECONDS = 30

needs_prometheus = pytest.mark.skipif(
    shutil.which("prometheus") is None or shutil.which("promtool") is None, reason=MISSING
)

Series = dict[str, str]


@dataclass(frozen=True)
class Prometheus:
    url: str

    def query(self, expression: str) -> list[tuple[Series, float]]:
        """Return the samples of an instant query. Fails for an expression that Prometheus refuses."""
        found = self._get("query", query=expression)["result"]
        return [(each["metric"], float(each["value"][1])) for each in found]

    def firing(self) -> set[str]:
        """Return the names of the alerts that fire now."""
        return {
            each["labels"]["alertname"]
            for each in self._get("alerts")["alerts"]
            if each["state"] == "firing"
        }

    def wait_for(self, condition: Callable[[], object], seconds: float = 40) -> None:
        """Wait until the condition is true. Fails with what fires if it is not after `seconds`."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"not within {seconds} s; firing: {self.firing()}"
            time.sleep(0.1)

    def _get(self, path: str, **parameters: str) -> Any:
        answer = httpx.get(f"{self.url}/api/v1/{path}", params=parameters, timeout=30)
        assert answer.status_code == 200, answer.text
        return answer.json()["data"]


def shortened(rules: str, window: str) -> str:
    """Return the same rules with short durations: each looks at the last `window`, and conditions need to hold for two
    seconds only. Nothing else differs from what is deployed."""
    rules = re.sub(r"\[\w+\]", f"[{window}]", rules)
    rules = re.sub(r"offset \w+", f"offset {window}", rules)
    return re.sub(r"(?m)^(\s+for:) \w+$", r"\1 2s", rules)


@contextlib.contextmanager
def scraping(
    url: str, folder: Path, window: str = "8s", interval: str = "1s"
) -> Iterator[Prometheus]:
    """Start a Prometheus that scrapes the server at `url` every `interval`, and stop it. Its rules look at the last
    `window`."""
    config = yaml.safe_load((DEPLOYMENTS / "prometheus" / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": interval, "evaluation_interval": interval}
    config["scrape_configs"][0]["static_configs"][0]["targets"] = [url.removeprefix("http://")]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    (folder / "rules.yml").write_text(shortened(RULES.read_text(), window))
    address = f"127.0.0.1:{free_port()}"
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address={address}",
            ],
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            started = Prometheus(f"http://{address}")
            _wait_until_scraped(started, folder / "prometheus.log")
            yield started
        finally:
            process.terminate()
            process.wait(timeout=30)


def _wait_until_scraped(prometheus: Prometheus, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        with contextlib.suppress(httpx.TransportError, AssertionError):
            if prometheus.query("up == 1"):
                return
        time.sleep(0.1)
    raise AssertionError(f"Prometheus has not scraped the server: {log.read_text()[-2000:]}")

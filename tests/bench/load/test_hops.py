"""What the way of a request costs by itself: proxy, gateway and the hop to an engine that does nothing."""

import contextlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest

from serve.graph.run_folder import end_processes
from tests.bench.load.empty import HERE, PATH
from tests.bench.measuring import interleaved, median_ms, ratio, report
from tests.service.running import free_port

pytestmark = [pytest.mark.bench, pytest.mark.timeout(900)]

SIDES = ("defaults", "choir")
ROUNDS = 200
CLIENTS = 16
REQUESTS = 400
TURNS = 3
MOST = 0.35
"""Times the seconds of Ray Serve's defaults."""


@contextlib.contextmanager
def serving_nothing(how: str) -> Iterator[str]:
    folder = Path(tempfile.mkdtemp(prefix="", dir="/tmp"))
    port = free_port()
    command = [sys.executable, "-m", "tests.bench.load.empty", how, str(port), str(folder)]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield f"http://127.0.0.1:{port}"
    finally:
        family = psutil.Process(process.pid).children(recursive=True)
        process.terminate()
        process.communicate()  # and closes its pipes
        end_processes(family)


@pytest.fixture(scope="module")
def addresses() -> Iterator[dict[str, str]]:
    with serving_nothing("defaults") as slow, serving_nothing("choir") as fast:
        yield {"defaults": slow, "choir": fast}


@pytest.mark.parametrize("path", [HERE, PATH, PATH + "/stream"])
def test_the_time_of_one_empty_request(addresses: dict[str, str], path: str) -> None:
    with contextlib.ExitStack() as stack:
        https = {
            name: stack.enter_context(httpx.Client(base_url=url, timeout=60, trust_env=False))
            for name, url in addresses.items()
        }

        def ask(name: str) -> None:
            https[name].post(path).raise_for_status()

        seconds = interleaved(
            {name: (lambda _, name=name: ask(name)) for name in SIDES}, ROUNDS, warmup=30
        )
    share = ratio(seconds["choir"], seconds["defaults"])
    report(
        f"One client, empty requests to {path}",
        *(f"{name:10} {median_ms(seconds[name]):6.2f} ms at the median" for name in SIDES),
        f"ratio      {share:.2f}   (at most {MOST})",
    )
    assert share <= MOST


def test_the_rate_of_empty_requests(addresses: dict[str, str]) -> None:
    taken: dict[str, list[float]] = {name: [] for name in SIDES}
    with ThreadPoolExecutor(CLIENTS) as clients:
        for _ in range(TURNS):
            for name in SIDES:
                with httpx.Client(base_url=addresses[name], timeout=60, trust_env=False) as http:
                    began = time.perf_counter()
                    list(clients.map(lambda _, http=http: http.post(PATH), range(REQUESTS)))
                    taken[name].append(time.perf_counter() - began)
    share = ratio(taken["choir"], taken["defaults"])
    report(
        f"{CLIENTS} clients, empty requests to {PATH}",
        *(f"{name:10} {REQUESTS / min(taken[name]):6.0f} requests a second" for name in SIDES),
        f"time for as many, ratio {share:.2f}   (at most {MOST})",
    )
    assert share <= MOST

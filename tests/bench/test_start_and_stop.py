"""How long a mistake takes to be said, and a stop to be done."""

import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest

from tests.service.models import Models, make_models
from tests.service.running import serving

pytestmark = pytest.mark.bench

MISTAKE_SECONDS = 5.0
STOP_SECONDS = 5.0


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return make_models(tmp_path_factory.mktemp("stop"))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--engine", '{"max_model_length": 512}'], "did you mean 'max_model_len'"),
        (["--adapter-root", "/nope"], "there is no folder /nope"),
    ],
)
def test_a_mistake_is_said_within_seconds(models: Models, options: list[str], says: str) -> None:
    began = time.monotonic()
    command = [sys.executable, "-m", "choir_cli.main", "serve", str(models.bundle), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    seconds = time.monotonic() - began
    print(f"{says}: after {seconds:.1f} s")
    assert (done.returncode, done.stdout) == (1, "")
    assert says in done.stderr
    assert seconds <= MISTAKE_SECONDS


def test_a_stop_takes_seconds_and_ends_streams_cleanly(models: Models, tmp_path: Path) -> None:
    """Streams that would go on for longer end with an error event, and a short one is finished."""
    body = {"model": "replies/a", "prompt": "x", "stream": True, "ignore_eos": True}
    ends: list[str] = []
    began = threading.Barrier(5)

    def stream(url: str) -> None:
        asked = {**body, "max_tokens": 400}
        with httpx.stream("POST", f"{url}/v1/completions", json=asked, timeout=60) as answer:
            pieces = (line for line in answer.iter_lines() if line)
            last = next(pieces)
            began.wait()
            for line in pieces:
                last = line
            ends.append(last)

    arguments = ("--dtype", "float32", "--engine", '{"kv_cache_memory_bytes": 268435456}')
    log = tmp_path / "serve.log"
    with serving(models.bundle, *arguments, "--store", tmp_path / "store", log=log) as service:
        streams = [threading.Thread(target=stream, args=(service.url,)) for _ in range(4)]
        for each in streams:
            each.start()
        began.wait()
        seconds = service.stop()
        for each in streams:
            each.join()
    print(f"a stop with 4 streams: {seconds:.1f} s")
    assert len(ends) == 4
    assert all(end == "data: [DONE]" or "is stopping" in end for end in ends), ends
    assert seconds <= STOP_SECONDS

"""Conversations over two engines: what is computed again, and how long a turn takes, by Ray Serve's router and ours."""

import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random

import pytest

from serve.bundle import BaseSpec, Bundle
from serve.manifest import Ensemble
from tests.bench.measuring import report
from tests.serve import tiny
from tests.service.running import Service, serving

pytestmark = [pytest.mark.bench, pytest.mark.timeout(1800)]

ROUTERS = {"Ray Serve's": "tests.bench.load.rays_router", "Choir's": "choir_cli.main"}
CONVERSATIONS = 16
TURNS = 6
THINKING_SECONDS = 3.0
"""From an answer to the next question, on average. Without it, Ray Serve would send a turn where the one before left a
place free, and that is where its prompt is known."""
DOCUMENT, QUESTION = 90, 12
"""Words of the text that a conversation begins with, and of what is said in each turn."""
COMPUTED = 0.9
"""Choir's router computes at most so many times the tokens that Ray Serve's does."""


@dataclass(frozen=True)
class Turn:
    seconds: float
    read: int
    computed: int


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("router")
    base = tiny.causal_base(root / "base", context=2048, layers=8, hidden=512)
    bundle = Bundle.create(root / "bundle", BaseSpec(path=str(base)))
    adapters = [tiny.lora(base, root / name, seed=seed) for seed, name in enumerate("ab", 1)]
    members = [
        {"name": folder.name, "adapters": [bundle.add_adapter(folder.name, folder)]}
        for folder in adapters
    ]
    fields = {"format": 1, "name": "replies", "version": 1, "task": "generation"}
    bundle.write_ensemble(
        Ensemble.model_validate({**fields, "members": members, "fusion": {"method": "average"}})
    )
    return root / "bundle"


@contextmanager
def two_engines(bundle: Path, program: str, log: Path) -> Iterator[Service]:
    engine = '{"max_num_seqs": 16, "max_model_len": 2048, "kv_cache_memory_bytes": 268435456}'
    with serving(
        bundle, "--replicas", "2", "--engine", engine, log=log, program=program
    ) as service:
        yield service


def words(random: Random, count: int) -> str:
    return " ".join(random.choice(tiny.CORPUS).split()[0] for _ in range(count))


def conversation(service: Service, number: int) -> list[Turn]:
    """Hold one conversation; it is the same for both routers."""
    random, pauses = Random(number), Random(-number)
    prompt = f"{number} {words(random, DOCUMENT)}"
    turns = []
    for _ in range(TURNS):
        prompt += " " + words(random, QUESTION)
        body = {"model": "replies", "prompt": prompt, "max_tokens": 8, "ignore_eos": True}
        began = time.perf_counter()
        response = service.post("/v1/completions", body)
        seconds = time.perf_counter() - began
        assert response.status_code == 200, response.text
        usage = response.json()["usage"]
        turns.append(Turn(seconds, usage["member_tokens"], usage["computed_tokens"]))
        prompt += response.json()["choices"][0]["text"]
        time.sleep(pauses.expovariate(1 / THINKING_SECONDS))
    return turns[1:]


def test_conversations_over_two_engines(bundle: Path, tmp_path: Path) -> None:
    lines, computed = [], {}
    for name, program in ROUTERS.items():
        with (
            two_engines(bundle, program, tmp_path / "serve.log") as service,
            ThreadPoolExecutor(CONVERSATIONS) as clients,
        ):
            list(clients.map(lambda each: conversation(service, each), range(900, 904)))  # warm-up
            held = clients.map(lambda each: conversation(service, each), range(CONVERSATIONS))
            turns = [turn for each in held for turn in each]
        computed[name] = sum(each.computed for each in turns)
        taken = [each.seconds * 1000 for each in turns]
        lines.append(
            f"{name:<12} {computed[name]:6d} of {sum(each.read for each in turns)} tokens computed; a turn "
            f"{statistics.median(taken):.0f} ms at the median, {statistics.mean(taken):.0f} on average"
        )
    report("Turns after the first, of conversations over two engines", *lines)
    assert computed["Choir's"] <= COMPUTED * computed["Ray Serve's"]

"""An encoder and a causal base in one server: each has engines of its own, and neither waits for the other."""

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from serve.bundle import BaseSpec, Bundle
from serve.digest import folder_digest
from serve.manifest import Ensemble
from tests.serve import tiny
from tests.service.load import Load, References
from tests.service.models import LABELS, TEXTS, Models
from tests.service.running import Service, kill, serving

pytestmark = [pytest.mark.engine, pytest.mark.slow]

TOPICS = ["card", "transfer", "top_up", "cancel"]
PATIENCE = 300
"""Seconds: a killed engine takes a minute or two to come back."""


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Path], References]:
    """A bundle `encoder` with the ensemble `topics`, the folders of three adapters, and what PEFT answers."""
    root = tmp_path_factory.mktemp("several")
    base = tiny.encoder_base(root / "base")
    adapters = {
        name: tiny.lora_with_head(base, root / "adapters" / name, labels=len(TOPICS), seed=seed)
        for seed, name in enumerate("abc", 1)
    }
    bundle = Bundle.create(root / "encoder", BaseSpec(path=str(base)))
    members = [
        {"name": name, "adapters": [bundle.add_adapter(f"topics-{name}", adapters[name])]}
        for name in "ab"
    ]
    manifest = {"format": 1, "name": "topics", "version": 1, "task": "classification"}
    fusion = {"method": "average"}
    bundle.write_ensemble(
        Ensemble.model_validate(
            {**manifest, "members": members, "labels": TOPICS, "fusion": fusion}
        )
    )
    references = {}
    for folder in adapters.values():
        peft = tiny.EncoderReference(base, folder)
        references[folder_digest(folder)] = {
            text: peft.probabilities(text, normalize=False) for text in TEXTS
        }
    return bundle.path, adapters, references


@pytest.fixture(scope="module")
def server(models: Models, encoder: tuple[Path, dict[str, Path], References]) -> Iterator[Service]:
    bundle, _, _ = encoder
    config = bundle.parent / "config.json"
    own = {"encoder": {"engine": {"max_num_seqs": 8}}}
    config.write_text(json.dumps({"lease_seconds": 3, "pools": own}))
    with serving(
        *(models.bundle, bundle, "--dtype", "float32", "--gateways", "2", "--config", config),
        *("--adapter-root", models.root / "adapters", "--adapter-root", bundle.parent / "adapters"),
        *("--store", bundle.parent / "store", "--engine", '{"max_model_len": 128}'),
        log=bundle.parent / "serve.log",
    ) as running:
        yield running


class Chat:
    """A client that chats until it is told to stop, and keeps what went wrong."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.answers = 0
        self.failures: list[str] = []

    def __enter__(self) -> "Chat":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        messages = [{"role": "user", "content": TEXTS[0]}]
        body = {"model": "replies", "messages": messages, "max_tokens": 4}
        with httpx.Client(base_url=self._url, timeout=60) as http:
            while not self._stop.is_set():
                answer = http.post("/v1/chat/completions", json=body)
                self.answers += 1
                if answer.status_code != 200:
                    self.failures.append(answer.text)


def test_both_bases_answer_and_swap_under_load_without_a_failure(
    server: Service, models: Models, encoder: tuple[Path, dict[str, Path], References]
) -> None:
    _, adapters, references = encoder
    chat = Chat(server.url)
    intents = Load(server.url, "intents", TEXTS, LABELS, models.references, clients=2)
    topics = Load(server.url, "topics", TEXTS, TOPICS, references, clients=2)
    with chat, intents, topics:
        for load in (intents, topics):
            load.wait_for(20)
        for name, uri in (("intents", models.uri("a2")), ("topics", adapters["c"].as_uri())):
            swapped = server.post(
                f"/v1/ensembles/{name}/swap?wait=true", {"members": {"a": uri}}
            ).json()
            engines = [each for each in swapped["replicas"] if each.startswith("engine/")]
            assert len(engines) == 1, "the other base's engine has no part in it"
            for load in (intents, topics):
                load.wait_for(20)
    assert intents.failures == topics.failures == chat.failures == []
    assert chat.answers > 0
    assert {"intents@1", "intents@2"} == set(intents.versions)
    assert {"topics@1", "topics@2"} == set(topics.versions)


def test_each_ensemble_is_shown_with_its_engines(server: Service) -> None:
    listed = {each["name"]: each for each in server.get("/v1/ensembles").json()["data"]}
    assert {name: each["pool"] for name, each in listed.items()} == {
        "intents": "bundle",
        "replies": "bundle",
        "careful": "bundle",
        "topics": "encoder",
    }
    models = {each["id"] for each in server.get("/v1/models").json()["data"]}
    assert {"intents", "replies", "topics"} <= models

    def loaded() -> dict[str, set[str]]:
        found: dict[str, set[str]] = {}
        for family in text_string_to_metric_families(server.get("/metrics").text):
            for sample in family.samples:
                if sample.name == "choir_ensemble_info":
                    found.setdefault(sample.labels["ensemble"], set()).add(sample.labels["replica"])
        return found

    until(lambda: {"intents", "topics"} <= loaded().keys())
    assert len(loaded()["intents"] | loaded()["topics"]) == 2, "no two engines share a number"


def test_a_text_for_the_wrong_base_is_a_400(server: Service) -> None:
    refused = server.post("/v1/completions", {"model": "topics", "prompt": "x"})
    assert refused.status_code == 400, refused.text


def test_one_base_goes_on_while_the_others_engine_is_dead(server: Service, models: Models) -> None:
    (engine,) = server.replicas("Engine-encoder")
    with Load(server.url, "intents", TEXTS, LABELS, models.references, clients=2) as intents:
        intents.wait_for(10)
        kill(engine)
        until(lambda: server.get("/ready").status_code == 503)
        said = server.get("/ready").json()["error"]["message"]
        assert "no engine of the pool encoder" in said
        intents.wait_for(20)
        with contextlib.suppress(httpx.TimeoutException):
            body = {"model": "topics", "input": TEXTS[0]}
            asked = httpx.post(f"{server.url}/v1/predict", json=body, timeout=30)
            assert asked.status_code in (200, 503), asked.text
        until(lambda: server.get("/ready").status_code == 200)
    assert intents.failures == []
    answer = server.post("/v1/predict", {"model": "topics", "input": TEXTS[0]})
    assert answer.json()["model"] == "topics@2"


def until(condition: Callable[[], object]) -> None:
    """Wait until the condition is true."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.2)

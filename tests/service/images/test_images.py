"""Bases that write about images, over HTTP: chats, labels, a swap under load, and hostile images."""

import contextlib
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import openai
import psutil
import pytest
from PIL import Image

from serve.bundle import BaseSpec, Bundle
from serve.digest import folder_digest
from serve.manifest import Ensemble
from tests.serve import seeing
from tests.serve.engine.fused import TIE, averaged
from tests.serve.images.hostile import hostile, url_of
from tests.serve.seeing import Reference
from tests.serve.towers import pictures
from tests.service.load import Load
from tests.service.running import Service, serving

pytestmark = [pytest.mark.engine, pytest.mark.slow]

LABELS = ["A", "B", "card lost", "card lost abroad"]
TEMPLATE = "Look: {image}\n{text} Intent:"
MEMBERS = {"a": "language", "b": "tower"}
PICTURES = pictures(4, seed=3)
ROUND = 6
"""How often each hostile image is sent at a time."""


@dataclass(frozen=True)
class Seen:
    bundle: Path
    adapters: dict[str, Path]
    references: dict[str, Reference]
    """Name of an adapter -> what PEFT answers."""


@pytest.fixture(scope="module", params=["idefics3", "llava"])
def seen(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Seen:
    family = cast(seeing.Family, request.param)
    root = tmp_path_factory.mktemp(family)
    base = seeing.base(family, root / "base")
    targets = seeing.TARGETS[family]
    parts = {**targets, "new-a": targets["both"], "new-b": targets["tower"]}
    adapters = {
        name: seeing.lora(base, root / "adapters" / name, each, seed=seed, rank=8)
        for seed, (name, each) in enumerate(parts.items(), start=1)
    }
    bundle = Bundle.create(root / "bundle", BaseSpec(path=str(base)))
    members = [
        {"name": name, "adapters": [bundle.add_adapter(f"seen-{name}", adapters[adapter])]}
        for name, adapter in MEMBERS.items()
    ]
    common = {"format": 1, "version": 1, "members": members, "fusion": {"method": "average"}}
    labelled = {"task": "classification", "labels": LABELS, "template": TEMPLATE}
    labelled["label_scoring"] = "mean"
    for own in ({"name": "seen", **labelled}, {"name": "captions", "task": "generation"}):
        bundle.write_ensemble(Ensemble.model_validate({**common, **own}))
    references = {name: Reference(base, folder) for name, folder in adapters.items()}
    return Seen(bundle.path, adapters, references)


@pytest.fixture(scope="module")
def service(seen: Seen) -> Iterator[Service]:
    with serving(
        seen.bundle,
        *("--dtype", "float32", "--adapter-root", seen.bundle.parent / "adapters"),
        *("--engine", '{"kv_cache_memory_bytes": 134217728}'),
        log=seen.bundle.parent / "serve.log",
    ) as running:
        yield running


@pytest.fixture(scope="module")
def client(service: Service) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{service.url}/v1", api_key="none", max_retries=0)


def content(url: str, text: str) -> list[dict[str, Any]]:
    image = {"type": "image_url", "image_url": {"url": url}}
    return [image, {"type": "text", "text": text}]


def test_the_openai_client_chats_about_an_image(seen: Seen, client: openai.OpenAI) -> None:
    """By one member, and by both at every token."""
    names = {"captions": list(MEMBERS.values()), "captions/b": ["tower"]}
    asked: Any = {"role": "user", "content": content(url_of(PICTURES[0]), "what is it?")}
    for model, adapters in names.items():
        answer = client.chat.completions.create(
            model=model,
            messages=[asked],
            max_tokens=8,
            temperature=0,
            logprobs=True,
            extra_body={"ignore_eos": True, "return_token_ids": True},
        )
        choice = answer.choices[0].model_dump()
        tokens = choice["token_ids"]
        each = []
        for name in adapters:
            reference = seen.references[name]
            prompt = reference.chat(("user", "what is it?", 1))
            each.append(reference.log_probs(prompt, [PICTURES[0]], tokens).numpy())
        merge = averaged([1 / len(each)] * len(each))
        fused = np.stack([merge(np.stack([own[i] for own in each])) for i in range(len(tokens))])
        chosen = fused[np.arange(len(tokens)), tokens]
        assert (fused.max(axis=1) - chosen).max() < TIE
        said = [token["logprob"] for token in choice["logprobs"]["content"]]
        np.testing.assert_allclose(said, chosen, atol=1e-3)


def test_a_stream_about_an_image_is_the_whole_answer(client: openai.OpenAI) -> None:
    arguments: dict[str, Any] = {
        "model": "captions",
        "messages": [{"role": "user", "content": content(url_of(PICTURES[1]), "what is it?")}],
        "max_tokens": 8,
        "temperature": 0,
        "extra_body": {"ignore_eos": True},
    }
    whole = client.chat.completions.create(**arguments)
    chunks = list(client.chat.completions.create(**arguments, stream=True))
    texts = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(texts) == whole.choices[0].message.content


def test_no_request_fails_and_no_answer_is_mixed_while_members_are_swapped(
    seen: Seen, service: Service
) -> None:
    """Images are kept for each adapter: none is answered by what another one saw."""
    words = [f" {label}" for label in LABELS]
    urls = {url_of(image): image for image in PICTURES}
    references = {
        folder_digest(folder): {
            url: seen.references[name].probabilities("Look: <image>\n Intent:", [image], words)
            for url, image in urls.items()
        }
        for name, folder in seen.adapters.items()
    }
    swap = "/v1/ensembles/seen/swap?wait=true"
    with Load(service.url, "seen", list(urls), LABELS, references, clients=4) as load:
        load.wait_for(40)
        for a, b in (("new-a", "new-b"), ("new-b", "new-a")):
            members = {"a": seen.adapters[a].as_uri(), "b": seen.adapters[b].as_uri()}
            swapped = service.post(swap, {"members": members})
            assert swapped.status_code == 200, swapped.text
            load.wait_for(40)
        back = service.post("/v1/ensembles/seen/rollback?wait=true", {})
        assert back.status_code == 200, back.text
        load.wait_for(40)
    assert load.failures == []
    assert len(load.versions) >= 3, "requests were answered by every version in turn"
    print(f"{load.requests} requests by {dict(load.versions)}")


@pytest.mark.parametrize("name", hostile())
def test_a_hostile_image_is_a_400_with_a_sentence(service: Service, name: str) -> None:
    url, _ = hostile()[name]
    message = {"role": "user", "content": content(url, "what is it?")}
    for path, body in (
        ("/v1/chat/completions", {"model": "captions", "messages": [message], "max_tokens": 1}),
        ("/v1/predict", {"model": "seen", "input": {"image": url or " "}}),
    ):
        response = service.post(path, body)
        assert response.status_code == 400, response.text
        said = response.json()["error"]["message"]
        assert said.endswith(".")
        assert len(said) < 400


def test_hostile_images_from_many_clients_leave_no_memory_behind(service: Service) -> None:
    """In any process that has the images in its hands. A round sends 270 MB, with good images among them; the
    first one shows what four at once take."""
    good = content(url_of(Image.new("RGB", (4900, 5000)), "JPEG"), "what is it?")
    asked = [good, *(content(url, "what is it?") for url, _ in hostile().values())]
    expected = {200: ROUND, 400: ROUND * (len(asked) - 1)}
    before = resident(service)
    first, _ = send_all(service, asked)
    settled = resident(service)
    second, most = send_all(service, asked)
    after = resident(service)
    assert first == second == expected
    print(f"{before} MB, {settled} MB after a round, at most {most} MB, and {after} MB at the end")
    assert after - settled < 150
    assert most - settled < 600


def send_all(service: Service, asked: list[Any]) -> tuple[Counter[int], int]:
    """Four clients send each chat `ROUND` times. Returns how often each status came, and the most MB meanwhile."""

    def send(number: int) -> int:
        message = {"role": "user", "content": asked[number % len(asked)]}
        body = {"model": "captions", "messages": [message], "max_tokens": 1}
        return service.post("/v1/chat/completions", body).status_code

    most = 0
    with ThreadPoolExecutor(max_workers=4) as clients:
        sent = [clients.submit(send, number) for number in range(ROUND * len(asked))]
        while not all(each.done() for each in sent):
            most = max(most, resident(service))
            time.sleep(0.05)
    return Counter(each.result() for each in sent), most


def resident(service: Service) -> int:
    """The MB in memory of gateways, and of engines with vLLM's own processes."""
    total = 0
    for replica in (*service.replicas("Gateway"), *service.replicas("Engine")):
        for process in (replica, *replica.children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                total += process.memory_info().rss
    return total >> 20


def test_good_images_are_still_answered(service: Service) -> None:
    image = {"image": url_of(PICTURES[0]), "text": "where is my card?"}
    response = service.post("/v1/predict", {"model": "seen", "input": [image, "a text"]})
    assert response.status_code == 200, response.text
    assert len(response.json()["data"]) == 2

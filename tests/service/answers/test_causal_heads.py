"""Heads over a causal base as a service: vLLM's answers are those of transformers' sequence classification."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from serve.pack import pack
from tests.serve import tiny
from tests.service.models import TEXTS
from tests.service.running import Service, serving

pytestmark = [pytest.mark.engine, pytest.mark.slow]

LABELS = ["card", "transfer", "top_up", "cancel"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A base, and adapters with heads, of which PEFT stored d's itself; c and d are to be swapped in."""
    root = tmp_path_factory.mktemp("causal-heads")
    base = tiny.causal_base(root / "base")
    adapters = {
        name: tiny.lora_with_head(
            base, root / "adapters" / name, labels=len(LABELS), seed=seed, rank=4 * seed
        )
        for seed, name in enumerate("abc", 1)
    }
    adapters["d"] = tiny.classifier(base, root / "adapters" / "d", labels=len(LABELS), seed=4)
    return {"root": root, "base": base, **adapters}


@pytest.fixture(scope="module")
def service(folders: dict[str, Path]) -> Iterator[Service]:
    bundle = pack(
        str(folders["base"]),
        {name: folders[name] for name in "ab"},
        folders["root"] / "bundle",
        task="classification",
        fusion="average",
        labels=LABELS,
        name="intents",
    )
    with serving(
        *(bundle.path, "--dtype", "float32", "--adapter-root", folders["root"] / "adapters"),
        log=folders["root"] / "serve.log",
    ) as running:
        yield running


def expected(folders: dict[str, Path], *adapters: str) -> np.ndarray:
    """[members, texts, labels]"""
    references = [tiny.ClassifierReference(folders["base"], folders[each]) for each in adapters]
    return np.array([[each.probabilities(text) for text in TEXTS] for each in references])


def check(service: Service, version: str, probabilities: np.ndarray) -> None:
    answer = service.post(
        "/v1/predict", {"model": "intents", "input": TEXTS, "return_members": True}
    ).json()
    assert answer["model"] == version
    for number, row in enumerate(answer["data"]):
        members = [[m["probabilities"][label] for label in LABELS] for m in row["members"]]
        np.testing.assert_allclose(members, probabilities[:, number], atol=1e-3)
        best = [LABELS[index] for index in probabilities[:, number].argmax(axis=1)]
        assert [m["label"] for m in row["members"]] == best
        mean = probabilities[:, number].mean(axis=0)
        np.testing.assert_allclose(
            [row["probabilities"][label] for label in LABELS], mean, atol=1e-3
        )
        assert row["label"] == LABELS[mean.argmax()]


def test_answers_are_those_of_transformers_before_and_after_a_swap_and_a_rollback(
    service: Service, folders: dict[str, Path]
) -> None:
    before = expected(folders, "a", "b")
    check(service, "intents@1", before)
    body = {"members": {"a": folders["c"].as_uri()}}
    swapped = service.post("/v1/ensembles/intents/swap?wait=true", body)
    assert swapped.status_code == 200, swapped.text
    check(service, "intents@2", expected(folders, "c", "b"))
    back = service.post("/v1/ensembles/intents/rollback?wait=true", {})
    assert back.status_code == 200, back.text
    check(service, "intents@1", before)


def test_a_sequence_classifier_of_pefts_own_answers_as_in_transformers(
    service: Service, folders: dict[str, Path]
) -> None:
    swapped = service.post(
        "/v1/ensembles/intents/swap?wait=true", {"members": {"b": folders["d"].as_uri()}}
    )
    assert swapped.status_code == 200, swapped.text
    check(service, f"intents@{swapped.json()['to']}", expected(folders, "a", "d"))
    back = service.post("/v1/ensembles/intents/rollback?wait=true", {})
    assert back.status_code == 200, back.text


def test_requests_choose_a_method_or_a_member(service: Service, folders: dict[str, Path]) -> None:
    a, b = expected(folders, "a", "b")
    body = {"input": TEXTS, "fusion": {"method": "weighted_average", "weights": {"a": 3, "b": 1}}}
    answer = service.post("/v1/predict", {"model": "intents", **body}).json()
    weighted = [[row["probabilities"][label] for label in LABELS] for row in answer["data"]]
    np.testing.assert_allclose(weighted, 0.75 * a + 0.25 * b, atol=1e-3)
    alone = service.post("/v1/predict", {"model": "intents/b", "input": TEXTS}).json()
    said = [[row["probabilities"][label] for label in LABELS] for row in alone["data"]]
    np.testing.assert_allclose(said, b, atol=1e-3)


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("/v1/completions", {"model": "intents/a", "prompt": "x"}, "read by heads"),
        ("/v1/predict", {"model": "intents", "input": "card " * 1100}, "context"),
        ("/v1/predict", {"model": "intents", "input": ""}, "empty"),
    ],
)
def test_what_heads_cannot_do_is_refused(
    service: Service, path: str, body: dict[str, object], words: str
) -> None:
    refused = service.post(path, body)
    assert refused.status_code == 400
    assert words in refused.json()["error"]["message"]

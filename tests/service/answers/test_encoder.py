"""Labels, sets of labels and values of pairs from heads over an encoder, as one service."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
from scipy.special import expit

from serve.bundle import Bundle
from serve.manifest import Ensemble
from serve.pack import pack
from tests.serve import tiny
from tests.service.models import TEXTS
from tests.service.running import Service, serving

pytestmark = pytest.mark.engine

LABELS = ["card", "transfer", "top_up", "cancel"]
TOPICS = ["money", "travel", "phone"]
THRESHOLDS = {"money": 0.05, "phone": 0.95}
NORMALIZE = {"a": False, "b": True}
PAIRS = list(zip(TEXTS, reversed(TEXTS), strict=True))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A base; adapters for intents (i-), topics (t-) and similarity (s-), and s-c to be swapped in."""
    root = tmp_path_factory.mktemp("encoder")
    # as LaBSE and others are published: nothing that stands there may change what a head reads
    base = tiny.sentence_transformer(tiny.encoder_base(root / "base"), width=32)
    adapters = {}
    for number, (kind, rows) in enumerate({"i": 4, "t": 3, "s": 1}.items()):
        for seed, name in enumerate([*NORMALIZE, "c"], 1):
            adapters[f"{kind}-{name}"] = tiny.lora_with_head(
                base,
                root / "adapters" / f"{kind}-{name}",
                labels=rows,
                seed=10 * number + seed,
                normalize=NORMALIZE.get(name, False),
                towers=kind == "s",
            )
    return {"root": root, "base": base, **adapters}


@pytest.fixture(scope="module")
def encoder(folders: dict[str, Path]) -> Iterator[Service]:
    """Intents as `choir serve --base` packs them, and two more ensembles beside them."""
    bundle = pack(
        str(folders["base"]),
        {name: folders[f"i-{name}"] for name in NORMALIZE},
        folders["root"] / "bundle",
        task="classification",
        fusion="average",
        labels=LABELS,
        name="intents",
    )
    add(bundle, folders, "topics", "t", "multilabel", labels=TOPICS, thresholds=THRESHOLDS)
    add(bundle, folders, "similarity", "s", "regression")
    assert bundle.verify() == []
    with serving(
        *(bundle.path, "--dtype", "float32", "--adapter-root", folders["root"] / "adapters"),
        log=folders["root"] / "serve.log",
    ) as running:
        yield running


def add(
    bundle: Bundle, folders: dict[str, Path], name: str, kind: str, task: str, **fields: Any
) -> None:
    members = [
        {
            "name": each,
            "adapters": [bundle.add_adapter(f"{name}-{each}", folders[f"{kind}-{each}"])],
        }
        for each in NORMALIZE
    ]
    manifest = {"format": 1, "name": name, "version": 1, "task": task, "members": members}
    bundle.write_ensemble(
        Ensemble.model_validate({**manifest, "fusion": {"method": "average"}, **fields})
    )


def test_members_and_average_equal_peft(encoder: Service, folders: dict[str, Path]) -> None:
    answer = encoder.post(
        "/v1/predict", {"model": "intents", "input": TEXTS, "return_members": True}
    ).json()
    expected = np.array(
        [
            [
                tiny.EncoderReference(folders["base"], folders[f"i-{name}"]).probabilities(
                    text, normalize=normalize
                )
                for text in TEXTS
            ]
            for name, normalize in NORMALIZE.items()
        ]
    )
    for number, row in enumerate(answer["data"]):
        members = [[m["probabilities"][label] for label in LABELS] for m in row["members"]]
        np.testing.assert_allclose(members, expected[:, number], atol=1e-3)
        fused = [row["probabilities"][label] for label in LABELS]
        np.testing.assert_allclose(fused, expected[:, number].mean(0), atol=1e-3)


def test_embeddings_equal_peft(encoder: Service, folders: dict[str, Path]) -> None:
    client = openai.OpenAI(base_url=f"{encoder.url}/v1", api_key="none", max_retries=0)
    for model, adapter in (("intents/a", folders["i-a"]), ("intents/b", folders["i-b"])):
        reference = tiny.EncoderReference(folders["base"], adapter)
        # The client asks for base64 by itself, and gives numbers.
        answer = client.embeddings.create(model=model, input=TEXTS)
        expected = np.array([reference.pooled(text, normalize=True) for text in TEXTS])
        said = np.array([each.embedding for each in answer.data])
        np.testing.assert_allclose(said, expected, atol=1e-3)
        floats = client.embeddings.create(model=model, input=TEXTS[0], encoding_format="float")
        np.testing.assert_allclose(floats.data[0].embedding, said[0], atol=1e-6)
        assert answer.usage.prompt_tokens == answer.usage.total_tokens > 0
    base = client.embeddings.create(model="intents", input=TEXTS)
    assert not np.allclose(base.data[0].embedding, said[0], atol=1e-2)
    with pytest.raises(openai.BadRequestError, match="dimensions"):
        client.embeddings.create(model="intents", input=TEXTS, dimensions=8)


@pytest.mark.filterwarnings("ignore")
def test_embeddings_by_other_clients(encoder: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    langchain = pytest.importorskip("langchain_openai")
    litellm = pytest.importorskip("litellm")
    body = {"model": "intents/a", "input": TEXTS}
    data = encoder.post("/v1/embeddings", body).json()["data"]
    expected = [each["embedding"] for each in data]
    at = f"{encoder.url}/v1"
    chain = langchain.OpenAIEmbeddings(
        model="intents/a", base_url=at, api_key="none", check_embedding_ctx_length=False
    )
    np.testing.assert_allclose(chain.embed_documents(TEXTS), expected, atol=1e-5)
    lite = litellm.embedding(
        model="openai/intents/a", input=TEXTS, api_base=at, api_key="none", encoding_format="float"
    )
    np.testing.assert_allclose([each["embedding"] for each in lite.data], expected, atol=1e-5)


def test_vllms_classify_is_answered_by_the_ensemble(encoder: Service) -> None:
    body = {"model": "intents", "input": TEXTS}
    rows = encoder.post("/classify", body).json()["data"]
    fused = encoder.post("/v1/predict", body).json()["data"]
    for row, own in zip(rows, fused, strict=True):
        assert (row["label"], row["num_classes"]) == (own["label"], len(LABELS))
        np.testing.assert_allclose(row["probs"], list(own["probabilities"].values()), atol=1e-6)


def test_a_special_tokens_name_in_lower_case_is_text(
    encoder: Service, folders: dict[str, Path]
) -> None:
    text = "my card [sep] is [cls] [unk] lost"
    answer = encoder.post("/v1/predict", {"model": "intents/a", "input": text}).json()
    expected = tiny.EncoderReference(folders["base"], folders["i-a"]).probabilities(text)
    said = [answer["data"][0]["probabilities"][label] for label in LABELS]
    np.testing.assert_allclose(said, expected, atol=1e-3)


def test_sets_of_labels_equal_peft(encoder: Service, folders: dict[str, Path]) -> None:
    answer = encoder.post(
        "/v1/predict", {"model": "topics", "input": TEXTS, "return_members": True}
    ).json()
    references = {
        name: tiny.EncoderReference(folders["base"], folders[f"t-{name}"]) for name in NORMALIZE
    }
    for text, row in zip(TEXTS, answer["data"], strict=True):
        expected = [
            expit(references[name].scores(text, normalize=normalize).numpy())
            for name, normalize in NORMALIZE.items()
        ]
        for said, member in zip(expected, row["members"], strict=True):
            assert_set(member, said)
        assert_set(row, np.mean(expected, axis=0))
        assert row["disagreement"] >= 0


def assert_set(said: dict[str, Any], probabilities: np.ndarray) -> None:
    np.testing.assert_allclose(list(said["probabilities"].values()), probabilities, atol=1e-3)
    answered = [
        label for label, p in said["probabilities"].items() if p >= THRESHOLDS.get(label, 0.5)
    ]
    assert said["labels"] == answered


def values(folders: dict[str, Path], adapters: dict[str, str]) -> np.ndarray:
    """Return what PEFT answers [members, pairs]."""
    return np.array(
        [
            [
                tiny.EncoderReference(folders["base"], folders[adapter]).scores(
                    *pair, normalize=NORMALIZE.get(adapter[2:], False)
                )
                for pair in PAIRS
            ]
            for adapter in adapters.values()
        ]
    )[:, :, 0]


def ask_pairs(encoder: Service, **fields: Any) -> tuple[str, np.ndarray, np.ndarray, np.ndarray]:
    """Return the version, the fused values, their spread, and the members' values."""
    inputs = [{"text": one, "text_pair": two} for one, two in PAIRS]
    answer = encoder.post(
        "/v1/predict", {"model": "similarity", "input": inputs, "return_members": True, **fields}
    ).json()
    data = answer["data"]
    members = [[member["value"] for member in row["members"]] for row in data]
    return (
        answer["model"],
        np.array([row["value"] for row in data]),
        np.array([row["std"] for row in data]),
        np.array(members).T,
    )


def test_values_of_pairs_equal_peft_before_and_after_a_swap_and_a_rollback(
    encoder: Service, folders: dict[str, Path]
) -> None:
    before = values(folders, {"a": "s-a", "b": "s-b"})
    after = values(folders, {"a": "s-c", "b": "s-b"})

    def check(version: str, expected: np.ndarray) -> None:
        model, fused, spread, members = ask_pairs(encoder)
        assert model == version
        np.testing.assert_allclose(members, expected, atol=5e-3)
        np.testing.assert_allclose(fused, members.mean(axis=0), atol=1e-9)
        np.testing.assert_allclose(spread, members.std(axis=0), atol=1e-9)

    check("similarity@1", before)
    body = {"members": {"a": folders["s-c"].as_uri()}}
    swapped = encoder.post("/v1/ensembles/similarity/swap?wait=true", body)
    assert swapped.status_code == 200, swapped.text
    check("similarity@2", after)
    back = encoder.post("/v1/ensembles/similarity/rollback?wait=true", {})
    assert back.status_code == 200, back.text
    check("similarity@1", before)
    _, weighted, _, members = ask_pairs(
        encoder, fusion={"method": "weighted_average", "weights": {"a": 3, "b": 1}}
    )
    np.testing.assert_allclose(weighted, [0.75, 0.25] @ members, atol=1e-9)


def test_golden_sets_and_values_are_those_of_peft(
    encoder: Service, folders: dict[str, Path]
) -> None:
    manifests = {
        each.name: each.model_dump(mode="json", exclude_none=True)
        for each in Bundle.open(folders["root"] / "bundle").ensembles()
    }
    expected = values(folders, {"a": "s-a", "b": "s-b"}).mean(axis=0)
    similar = [
        {"input": {"text": one, "text_pair": two}, "value": float(value), "tolerance": 0.01}
        for (one, two), value in zip(PAIRS, expected, strict=True)
    ]
    topics = []
    for text in TEXTS:
        said = [
            expit(
                tiny.EncoderReference(folders["base"], folders[f"t-{name}"])
                .scores(text, normalize=normalize)
                .numpy()
            )
            for name, normalize in NORMALIZE.items()
        ]
        pairs = zip(TOPICS, np.mean(said, axis=0), strict=True)
        topics.append(
            {"input": text, "labels": [t for t, p in pairs if p >= THRESHOLDS.get(t, 0.5)]}
        )

    def swap(name: str, golden: list[dict[str, Any]]) -> Any:
        body = {"manifest": manifests[name] | {"golden": golden}}
        return encoder.post(f"/v1/ensembles/{name}/swap?wait=true", body)

    for name, golden in (("similarity", similar), ("topics", topics)):
        swapped = swap(name, golden)
        assert swapped.status_code == 200, swapped.text
    similar[2]["value"] += 0.5
    topics[1]["labels"] = [topic for topic in TOPICS if topic not in topics[1]["labels"]]
    for name, golden, number in (("similarity", similar, 2), ("topics", topics, 1)):
        refused = swap(name, golden)
        assert refused.status_code == 400, refused.text
        assert f"golden input {number} (" in refused.json()["error"]["message"]
        back = encoder.post(f"/v1/ensembles/{name}/rollback?wait=true", {})
        assert back.status_code == 200, back.text


def test_a_head_of_another_task_is_refused_by_a_swap(
    encoder: Service, folders: dict[str, Path]
) -> None:
    body = {"members": {"a": folders["t-c"].as_uri()}}
    refused = encoder.post("/v1/ensembles/similarity/swap?wait=true", body)
    assert refused.status_code == 400
    assert "3 rows, but the ensemble needs 1" in refused.json()["error"]["message"]


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("/v1/completions", {"model": "intents/a", "prompt": "x"}, "encoder"),
        ("/v1/predict", {"model": "intents", "input": "card " * 500}, "context"),
        (
            "/v1/predict",
            {"model": "intents", "input": {"text": "x", "text_pair": "y"}},
            "leave text_pair out",
        ),
        ("/v1/predict", {"model": "similarity", "input": ["x"]}, "give a text_pair"),
        (
            "/v1/predict",
            {"model": "similarity", "input": [{"text": "x", "text_pair": "y"}, "x"]},
            "give a text_pair",
        ),
        (
            "/v1/predict",
            {
                "model": "similarity",
                "input": {"text": "x", "text_pair": "y"},
                "fusion": {"method": "vote"},
            },
            "not for regression",
        ),
    ],
)
def test_what_an_encoder_cannot_do_is_refused(
    encoder: Service, path: str, body: dict[str, object], words: str
) -> None:
    refused = encoder.post(path, body)
    assert refused.status_code == 400
    assert words in refused.json()["error"]["message"]


@pytest.mark.slow
def test_two_peft_folders_are_served_without_a_bundle_by_one_command(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "labels.txt").write_text("\n".join(LABELS))
    with serving(
        *("--base", folders["base"], "--task", "classification", "--fusion", "average"),
        *("--adapter", f"a={folders['i-a']}", "--adapter", f"b={folders['i-b']}"),
        *("--labels", tmp_path / "labels.txt", "--name", "intents", "--dtype", "float32"),
        log=tmp_path / "serve.log",
    ) as running:
        answer = running.post("/v1/predict", {"model": "intents", "input": TEXTS}).json()
    assert [set(row["probabilities"]) for row in answer["data"]] == [set(LABELS)] * len(TEXTS)

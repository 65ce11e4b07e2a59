"""Two PEFT folders over an encoder, served without a bundle by one command."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.serve import tiny
from tests.service.models import TEXTS
from tests.service.running import Service, serving

pytestmark = pytest.mark.engine

LABELS = ["card", "transfer", "top_up", "cancel"]
NORMALIZE = {"a": False, "b": True}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("encoder")
    base = tiny.encoder_base(root / "base")
    adapters = {
        name: tiny.lora_with_head(base, root / name, labels=4, seed=seed, normalize=normalize)
        for seed, (name, normalize) in enumerate(NORMALIZE.items(), 1)
    }
    (root / "labels.txt").write_text("\n".join(LABELS))
    return {"root": root, "base": base, **adapters}


@pytest.fixture(scope="module")
def encoder(folders: dict[str, Path]) -> Iterator[Service]:
    with serving(
        *("--base", folders["base"], "--task", "classification", "--fusion", "average"),
        *("--adapter", f"a={folders['a']}", "--adapter", f"b={folders['b']}"),
        *("--labels", folders["root"] / "labels.txt", "--name", "intents", "--dtype", "float32"),
        log=folders["root"] / "serve.log",
    ) as running:
        yield running


def test_members_and_average_equal_peft(encoder: Service, folders: dict[str, Path]) -> None:
    answer = encoder.post(
        "/v1/predict", {"model": "intents", "input": TEXTS, "return_members": True}
    ).json()
    expected = np.array(
        [
            [
                tiny.EncoderReference(folders["base"], folders[name]).probabilities(
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


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("/v1/completions", {"model": "intents/a", "prompt": "x"}, "encoder"),
        ("/v1/predict", {"model": "intents", "input": "card " * 500}, "context"),
        (
            "/v1/predict",
            {"model": "intents", "input": {"text": "x", "text_pair": "y"}},
            "text_pair",
        ),
    ],
)
def test_what_an_encoder_cannot_do_is_refused(
    encoder: Service, path: str, body: dict[str, object], words: str
) -> None:
    refused = encoder.post(path, body)
    assert refused.status_code == 400
    assert words in refused.json()["error"]["message"]

"""Recall@k of images and captions, against scikit-learn and by hand."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import top_k_accuracy_score

from serve.pack import pack
from tests.serve import towers
from tests.serve.images.hostile import saved
from training.evaluation.retrieval import DEPTHS, recall, retrieval, retrieve


def test_of_one_right_caption_each_it_is_the_top_k_accuracy() -> None:
    scores = np.random.default_rng(1).normal(size=(40, 40))
    found = retrieval("a", scores, np.eye(40, dtype=np.bool_))
    for depth in DEPTHS:
        expected = top_k_accuracy_score(range(40), scores, k=depth, labels=range(40))
        assert found.captions_of_images[depth] == pytest.approx(expected)
        expected = top_k_accuracy_score(range(40), scores.T, k=depth, labels=range(40))
        assert found.images_of_captions[depth] == pytest.approx(expected)


def test_any_right_one_counts_and_a_tie_counts_against() -> None:
    scores = np.array([[0.9, 0.5, 0.1], [0.7, 0.7, 0.2], [0.1, 0.2, 0.3]])
    right = np.array([[0, 1, 1], [1, 0, 0], [1, 0, 1]], dtype=np.bool_)
    assert recall(scores, right) == {1: pytest.approx(1 / 3), 5: 1.0, 10: 1.0}


def test_members_and_their_average_are_judged_on_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = towers.base("clip", tmp_path / "base")
    lora = towers.lora(base, tmp_path / "a", ["q_proj", "fc1"], seed=1, rank=4, labels=None)
    bundle = pack(
        str(base),
        {"a": lora},
        tmp_path / "bundle",
        task="classification",
        fusion="average",
        labels=["x", "y"],
        prompts=["a {label}"],
    )
    pictures, texts = towers.pictures(12), towers.texts(12)
    lines = ["image,caption"]
    for place, (picture, text) in enumerate(zip(pictures, texts, strict=True)):
        (tmp_path / f"{place}.png").write_bytes(saved(picture))
        lines.append(f"{place}.png,{text}")
    (tmp_path / "pairs.csv").write_text("\n".join(lines) + "\n")
    retrieve(bundle.path, "ensemble", tmp_path / "pairs.csv", "caption", tmp_path / "out.json")
    reference = towers.Reference(base, lora)
    images, written = (
        torch.stack([reference.vector(each) / reference.vector(each).norm() for each in inputs])
        for inputs in (pictures, texts)
    )
    expected = (images @ written.T).double().numpy()
    (own, average) = json.loads((tmp_path / "out.json").read_text())
    assert own["captions_of_images"] == {
        str(k): v for k, v in recall(expected, np.eye(12, dtype=np.bool_)).items()
    }
    assert {**own, "system": "average"} == average
    assert "12 images, 12 captions" in capsys.readouterr().out

"""A SigLIP from nothing: what is saved, and where its training starts."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import AutoModel, AutoProcessor

from serve.base.folder import kind_of, read_config
from serve.base.two_towers import unserved_towers
from tests.serve import towers
from tests.serve.images.hostile import url_of
from training.progress import Unwatched
from training.recipe import Scratch
from training.stages.fit import Stage
from training.stages.towers.inputs import TowerInputs, tower_vectors
from training.stages.towers.scratch import first_bias, train_towers


def test_it_is_saved_as_transformers_reads_it_and_as_engines_serve_it(tmp_path: Path) -> None:
    scratch = Scratch(
        architecture="siglip",
        hidden=32,
        layers=1,
        heads=1,
        image_size=16,
        patch_size=8,
        vocabulary=300,
        context=32,
        documents=["a {label} square"],
        epochs=1,
        batch_size=4,
    )
    pictures = towers.pictures(8)
    rows = Dataset.from_dict(
        {"picture": list(map(url_of, pictures)), "label": ["red", "green"] * 4}
    )
    stage = Stage("base", tmp_path / "work", "float32", Unwatched())
    base = tmp_path / "base"
    train_towers(scratch, rows, "picture", ["a blue square"], base, 1, stage)
    assert kind_of(read_config(base)) == "encoder"
    assert unserved_towers(read_config(base)) is None
    model, processor = AutoModel.from_pretrained(base).eval(), AutoProcessor.from_pretrained(base)
    assert type(model).__name__ == "SiglipModel"
    assert model.logit_bias.item() != pytest.approx(
        first_bias(["a", "b"], 4), abs=1e-4
    )  # it learns
    texts = processor(
        text=["a red square"], padding="max_length", max_length=32, return_tensors="pt"
    )
    shown = processor(images=pictures[:1], return_tensors="pt")
    inputs = TowerInputs(str(base))
    with torch.no_grad():
        expected = [
            model.get_text_features(input_ids=texts["input_ids"]).pooler_output,
            model.get_image_features(**shown).pooler_output,
        ]
        found = [
            tower_vectors(model, inputs.batch(["a red square"])),
            tower_vectors(model, inputs.batch([url_of(pictures[0])])),
        ]
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_its_bias_starts_at_the_share_of_pairs_that_belong_together() -> None:
    """Measured on many random batches."""
    captions = ["one"] * 60 + ["two"] * 30 + ["three"] * 10
    random, shares = np.random.default_rng(1), []
    for _ in range(4000):
        batch = random.choice(captions, 8, replace=False)
        shares.append((batch[:, None] == batch[None, :]).mean())
    share = float(np.mean(shares))
    assert first_bias(captions, 8) == pytest.approx(math.log(share / (1 - share)), abs=0.05)
    assert first_bias(["alone"] * 3, 3) == 0.0

"""The losses of images and captions, against transformers and against sums written out."""

import math
from pathlib import Path

import pytest
import torch
from transformers import CLIPModel

from tests.serve import towers
from tests.serve.images.hostile import url_of
from training.stages.towers.contrastive import sigmoid_loss, softmax_loss
from training.stages.towers.inputs import TowerInputs


def test_of_captions_that_differ_it_is_clips_own_loss(tmp_path: Path) -> None:
    base = towers.base("clip", tmp_path / "base")
    model = CLIPModel.from_pretrained(base).eval()
    inputs = TowerInputs(str(base))
    batch = {
        **inputs.batch([url_of(each) for each in towers.pictures(5)]),
        **inputs.batch(towers.texts(5)),
    }
    with torch.no_grad():
        theirs = model(**batch, return_loss=True)
    ours = softmax_loss(theirs.logits_per_image, torch.eye(5, dtype=torch.bool))
    assert ours.item() == pytest.approx(theirs.loss.item(), abs=1e-5)


def test_equal_captions_are_all_right() -> None:
    """Two images of one caption: each shares its probability between both."""
    logits = torch.tensor([[2.0, 2.0, -1.0], [2.0, 2.0, -1.0], [-1.0, -1.0, 3.0]])
    same = torch.tensor([[1, 1, 0], [1, 1, 0], [0, 0, 1]], dtype=torch.bool)
    two = -math.log(math.exp(2) / (2 * math.exp(2) + math.exp(-1)))
    one = -math.log(math.exp(3) / (2 * math.exp(-1) + math.exp(3)))
    assert softmax_loss(logits, same).item() == pytest.approx((2 * two + one) / 3, abs=1e-6)
    assert softmax_loss(logits, same) < softmax_loss(logits, torch.eye(3, dtype=torch.bool)) + 1e-6


def test_siglips_loss_judges_each_pair_by_itself() -> None:
    logits = torch.tensor([[1.5, -0.5], [0.25, 2.0]])
    expected = sum(
        math.log1p(math.exp(-sign * score))
        for score, sign in ((1.5, 1), (-0.5, -1), (0.25, -1), (2.0, 1))
    )
    found = sigmoid_loss(logits, torch.eye(2, dtype=torch.bool))
    assert found.item() == pytest.approx(expected / 2, abs=1e-6)

"""Losses by hand and against their definition."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from training.recipe import LoraStage
from training.stages.losses import label_cross_entropy, task_loss, value_loss


def test_a_true_label_of_probability_08_costs_0223_and_a_false_one_of_01_costs_0105() -> None:
    scores = torch.tensor([[0.8], [0.1]]).logit()
    assert label_cross_entropy(scores[:1], torch.tensor([[1]])).item() == pytest.approx(
        0.223, abs=5e-4
    )
    assert label_cross_entropy(scores[1:], torch.tensor([[0]])).item() == pytest.approx(
        0.105, abs=5e-4
    )


def test_single_labels_cost_the_same_worked_values() -> None:
    """-log 0.8 and -log 0.9 as the probabilities of the right one of three labels."""
    scores = torch.tensor([[0.8, 0.15, 0.05], [0.05, 0.9, 0.05]]).log()
    stage = LoraStage(label_smoothing=0)
    first = task_loss("classification", stage, scores[:1], torch.tensor([0]))
    assert first.item() == pytest.approx(0.223, abs=5e-4)
    both = task_loss("classification", stage, scores, torch.tensor([0, 1]))
    assert both.item() == pytest.approx((0.22314 + 0.10536) / 2, abs=1e-4)


def test_labels_are_summed_and_rows_averaged() -> None:
    rng = np.random.default_rng(0)
    scores, truth = rng.normal(size=(7, 5)), rng.random((7, 5)) < 0.4
    p = 1 / (1 + np.exp(-scores))
    expected = -(truth * np.log(p) + (1 - truth) * np.log(1 - p)).sum(axis=1).mean()
    found = task_loss("multilabel", LoraStage(), torch.tensor(scores), torch.tensor(truth))
    assert found.item() == pytest.approx(expected)


def test_a_certain_and_wrong_label_costs_no_infinity() -> None:
    loss = label_cross_entropy(torch.tensor([[200.0, -200.0]]), torch.tensor([[0, 1]]))
    assert loss.item() == pytest.approx(400)


def test_values_cost_their_squared_error_or_hubers() -> None:
    values, truth = torch.tensor([[1.0], [5.0]]), torch.tensor([0.5, 2.0])
    squared = task_loss("regression", LoraStage(), values, truth)
    assert squared.item() == pytest.approx((0.25 + 9) / 2)
    huber = task_loss("regression", LoraStage(loss="huber"), values, truth)
    assert huber.item() == pytest.approx((0.5 * 0.25 + (3 - 0.5)) / 2)
    assert value_loss(values[:, 0], truth, "huber") == F.huber_loss(values[:, 0], truth)

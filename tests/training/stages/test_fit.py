"""Batches and schedule of a fine-tuning run."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import nn

from training.execution.progress_table import ProgressTable
from training.stages.fit import FitOptions, FitRows, Stage, fit, pad, padding_mask


class Constant(nn.Module):
    """A model that only counts what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, input_ids: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": (self.weight * input_ids.shape[0]).sum()}


def test_batches_hold_rows_of_similar_length_each_row_once_an_epoch(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    lengths = rng.integers(5, 100, size=400).tolist()
    rows = [
        {"input_ids": [number] * length, "labels": [], "length": length}
        for number, length in enumerate(lengths)
    ]
    seen: list[int] = []
    padded = 0
    longest: list[int] = []

    def collate(features: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        nonlocal padded
        ids = [feature["input_ids"] for feature in features]
        seen.extend(row[0] for row in ids)
        longest.append(max(map(len, ids)))
        padded += len(ids) * longest[-1]
        return {"input_ids": pad(ids, 0)}

    with ProgressTable() as progress_table:
        options = FitOptions(epochs=1, batch_size=10, learning_rate=0.1, seed=1)
        fit(
            Constant(),
            FitRows(Dataset.from_list(rows), None),
            collate,
            options,
            Stage("test", tmp_path, "float32", progress_table),
        )
    assert sorted(seen) == list(range(400))
    # Random batches of ten would pad these rows to about 1.75 times their tokens.
    assert padded / sum(lengths) < 1.25
    # The batches are not ordered by length.
    assert 10 < sum(a < b for a, b in itertools.pairwise(longest)) < 30


def test_padding_is_on_the_right_and_masked() -> None:
    rows = [[5, 6], [7]]
    assert pad(rows, 0).tolist() == [[5, 6], [7, 0]]
    assert padding_mask(rows).tolist() == [[1, 1], [1, 0]]

"""Rows and batches of members with heads over a base with two towers. Images are decoded batch by batch, so that all of
them never lie in memory as pixels."""

from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset

from training.data.images import is_image
from training.stages.fit import Collate
from training.stages.towers.inputs import TowerInputs


def member_features(rows: Dataset, columns: Sequence[str], targets: Sequence[Any]) -> Dataset:
    """Turn rows into features: `input` of the first column, `pair` of a second one, `labels` and `length`."""
    first = list(rows[columns[0]])
    features = {
        "input": first,
        "labels": list(targets),
        # All images of a base are of one size; texts are of as many tokens as they are long, more or less.
        "length": [1 if is_image(cell) else len(cell) for cell in first],
    }
    if len(columns) > 1:
        features["pair"] = list(rows[columns[1]])
    return Dataset.from_dict(features)


def collate_for(inputs: TowerInputs) -> Collate:
    """Return the function that makes batches: what the base reads, and `labels` [batch] or [batch, labels]. Of pairs,
    all first texts come before all second ones."""

    def collate(features: Sequence[Any]) -> dict[str, torch.Tensor]:
        cells = [each["input"] for each in features]
        cells += [each["pair"] for each in features if "pair" in each]
        labels = torch.tensor([each["labels"] for each in features])
        return {**inputs.batch(cells), "labels": labels}

    return collate

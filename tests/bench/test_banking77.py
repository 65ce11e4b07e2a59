"""BANKING77, trained, served and compared: every served prediction equals the offline one."""

import os
from pathlib import Path

import numpy as np
import pytest

from choir_client import Choir
from serve.bundle import Bundle
from serve.fusion.fuse import Fusion
from tests.bench.conftest import banking77
from tests.bench.measuring import report
from tests.service.running import serving

pytestmark = pytest.mark.bench

RECIPE = Path("training/recipes/banking77.yaml")
BUNDLE = Path(os.environ.get("BANKING77_BUNDLE", ".choir-demo/banking77"))
"""Trained here unless it is there: about 40 core-minutes."""


@pytest.mark.timeout(3600)
def test_all_served_predictions_equal_the_offline_ones(tmp_path: Path) -> None:
    rows = banking77("test.csv")
    from training.offline.members import OfflineMembers
    from training.pipeline import train

    if not (BUNDLE / "report" / "metrics.json").exists():
        train(RECIPE, BUNDLE, resume=True)
    bundle = Bundle.open(BUNDLE)
    ensemble = bundle.ensemble("intents")
    texts = [row["text"] for row in rows]
    offline = OfflineMembers(bundle, ensemble).outputs(texts)
    fused = Fusion.from_manifest(ensemble, bundle.fusion_path(ensemble))(offline)
    labels = ensemble.labels or []

    arguments = ("--dtype", "float32", "--store", tmp_path / "store")
    with (
        serving(BUNDLE, *arguments, log=tmp_path / "serve.log") as service,
        Choir(service.url) as choir,
    ):
        answer = choir.predict("intents", texts, return_members=True)
    served = np.array([[row.probabilities[label] for label in labels] for row in answer.data])
    members = np.array(
        [
            [[member.probabilities[label] for label in labels] for member in row.members or []]
            for row in answer.data
        ]
    )
    difference = np.abs(served - fused.probabilities).max()
    worst = np.abs(members.transpose(1, 0, 2) - offline).max()
    expected = [labels[index] for index in fused.winners]
    same = sum(row.label == label for row, label in zip(answer.data, expected, strict=True))
    right = sum(row.label == row_["category"] for row, row_ in zip(answer.data, rows, strict=True))
    report(
        f"BANKING77: {len(rows)} test messages over HTTP against PEFT offline",
        f"same label              {same} of {len(rows)}",
        f"largest difference      {difference:.1e} fused, {worst:.1e} of a member",
        f"accuracy as served      {right / len(rows):.4f}",
    )
    assert same == len(rows)
    assert difference < 1e-3
    assert worst < 1e-3

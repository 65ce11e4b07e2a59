"""The recipe of the digits, in a small form: trained from nothing, served over HTTP, and asked about its test rows."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import yaml

from serve.bundle import Bundle
from serve.fusion.fuse import Fusion
from tests.service.running import Service, serving
from training.execution.held_rows import kept
from training.execution.run import WORK
from training.offline.members import OfflineMembers
from training.pipeline import train
from training.recipe.recipe import RECIPES

pytestmark = [pytest.mark.engine, pytest.mark.slow]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("digits")
    content: dict[str, Any] = yaml.safe_load((RECIPES / "digits.yaml").read_text())
    content["base"]["scratch"] |= {"epochs": 12}
    content["data"]["example"] |= {"train_rows": 600, "test_rows": 100}
    for ensemble in content["ensembles"]:
        ensemble["defaults"] |= {"epochs": 3}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(content))
    return train(folder / "recipe.yaml", folder / "bundle")


@pytest.fixture(scope="module")
def service(bundle: Bundle) -> Iterator[Service]:
    with serving(bundle.path, "--dtype", "float32", log=bundle.path.parent / "log") as running:
        yield running


@pytest.mark.parametrize("name", ["digits", "prompted"])
def test_http_answers_are_the_offline_figures(bundle: Bundle, service: Service, name: str) -> None:
    ensemble, rows = bundle.ensemble(name), kept(bundle.path / WORK, "test")
    assert rows is not None
    labels = ensemble.labels or []
    offline = OfflineMembers(bundle, ensemble).outputs(list(rows["image"]))
    fused = Fusion.from_manifest(ensemble, bundle.fusion_path(ensemble))(offline)
    asked = {
        "model": name,
        "input": [{"image": url} for url in rows["image"]],
        "return_members": True,
    }
    answer = service.post("/v1/predict", asked).json()
    said = np.array(
        [
            [[member["probabilities"][label] for label in labels] for member in row["members"]]
            for row in answer["data"]
        ]
    )
    np.testing.assert_allclose(said, offline.transpose(1, 0, 2), atol=1e-4)
    together = [[row["probabilities"][label] for label in labels] for row in answer["data"]]
    np.testing.assert_allclose(together, fused.probabilities, atol=1e-4)
    right = np.mean(
        [row["label"] == digit for row, digit in zip(answer["data"], rows["digit"], strict=True)]
    )
    assert right > 0.8  # of ten digits

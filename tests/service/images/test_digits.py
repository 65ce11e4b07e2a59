"""The recipes of the digits, in a small form: trained from nothing, served over HTTP, and asked about their test rows.

One base is a CLIP, whose members have heads or classify by prompts. The other is an Idefics3, which writes."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import yaml

from serve.bundle import Bundle
from serve.fusion.fuse import Fusion
from tests.service.load import Load
from tests.service.running import Service, serving
from training.execution.held_rows import kept
from training.execution.run import WORK
from training.offline.members import OfflineMembers
from training.pipeline import train
from training.recipe.recipe import RECIPES

pytestmark = [pytest.mark.engine, pytest.mark.slow]


EPOCHS = {"digits": 12, "digits_chat": 20}
"""Recipe -> passes of its base over 600 rows, after which it tells digits apart."""


@pytest.fixture(scope="module", params=EPOCHS)
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    name = request.param
    folder = tmp_path_factory.mktemp(name)
    content: dict[str, Any] = yaml.safe_load((RECIPES / f"{name}.yaml").read_text())
    content["base"]["scratch"] |= {"epochs": EPOCHS[name]}
    content["data"]["example"] |= {"train_rows": 600, "test_rows": 100}
    for ensemble in content["ensembles"]:
        ensemble["defaults"] |= {"epochs": 3}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(content))
    return train(folder / "recipe.yaml", folder / "bundle")


@pytest.fixture(scope="module")
def service(bundle: Bundle) -> Iterator[Service]:
    options = ("--dtype", "float32", "--adapter-root", bundle.path)
    with serving(bundle.path, *options, log=bundle.path.parent / "log") as running:
        yield running


def test_http_answers_are_the_offline_figures(bundle: Bundle, service: Service) -> None:
    for name in [ensemble.name for ensemble in bundle.ensembles()]:
        check_answers(bundle, service, name)


def check_answers(bundle: Bundle, service: Service, name: str) -> None:
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


def test_no_request_fails_and_no_answer_is_mixed_while_members_are_swapped(
    bundle: Bundle, service: Service
) -> None:
    """Two members take each other's adapter, and take it back."""
    ensemble, rows = bundle.ensemble("digits"), kept(bundle.path / WORK, "test")
    assert rows is not None
    images = list(rows["image"])[:20]
    offline = OfflineMembers(bundle, ensemble).outputs(images)
    references = {
        member.adapters[0].digest: dict(zip(images, own.tolist(), strict=True))
        for member, own in zip(ensemble.members, offline, strict=True)
    }
    one, other = [member.name for member in ensemble.members[:2]]
    folders = {m.name: bundle.adapter_dir(m.adapters[0]).as_uri() for m in ensemble.members}
    swap, labels = "/v1/ensembles/digits/swap?wait=true", ensemble.labels or []
    with Load(service.url, "digits", images, labels, references, clients=4) as load:
        load.wait_for(50)
        for a, b in ((other, one), (one, other)):
            swapped = service.post(swap, {"members": {one: folders[a], other: folders[b]}})
            assert swapped.status_code == 200, swapped.text
            load.wait_for(50)
        back = service.post("/v1/ensembles/digits/rollback?wait=true", {})
        assert back.status_code == 200, back.text
        load.wait_for(50)
    assert load.failures == []
    assert len(load.versions) >= 3, "requests were answered by every version in turn"
    print(f"{load.requests} requests by {dict(load.versions)}")

"""CLIP and SigLIP over HTTP: images and texts in one request, a swap under load, and hostile images."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from serve.bundle import BaseSpec, Bundle
from serve.digest import folder_digest
from serve.manifest import Ensemble
from tests.serve import towers
from tests.serve.images.hostile import hostile, url_of
from tests.serve.towers import Reference
from tests.service.load import Load
from tests.service.running import Service, serving

pytestmark = [pytest.mark.engine, pytest.mark.slow]

LABELS = ["A", "B", "C"]
NAMES = ("vision", "text", "both", "new")
PICTURES, TEXTS = towers.pictures(4), towers.texts(4)


@dataclass(frozen=True)
class Made:
    bundle: Bundle
    adapters: dict[str, Path]
    references: dict[str, Reference]
    """Name of an adapter -> what PEFT answers."""


@pytest.fixture(scope="module", params=["clip", "siglip"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    family = cast(towers.Family, request.param)
    root = tmp_path_factory.mktemp(family)
    base = towers.base(family, root / "base")
    targets = {**towers.TARGETS[family], "new": towers.TARGETS[family]["both"]}
    adapters = {
        name: towers.lora(base, root / "adapters" / name, targets[name], seed=seed, rank=8)
        for seed, name in enumerate(NAMES, start=1)
    }
    bundle = Bundle.create(root / "bundle", BaseSpec(path=str(base)))
    members = [
        {"name": name, "adapters": [bundle.add_adapter(name, adapters[name])]} for name in NAMES[:3]
    ]
    manifest = {"format": 1, "name": "seen", "version": 1, "task": "classification"}
    more = {"members": members, "fusion": {"method": "average"}, "labels": LABELS}
    bundle.write_ensemble(Ensemble.model_validate({**manifest, **more}))
    references = {name: Reference(base, folder) for name, folder in adapters.items()}
    return Made(bundle, adapters, references)


@pytest.fixture(scope="module")
def service(made: Made) -> Iterator[Service]:
    root = made.bundle.path.parent
    with serving(
        *(made.bundle.path, "--dtype", "float32", "--adapter-root", root / "adapters"),
        log=root / "serve.log",
    ) as running:
        yield running


def test_members_and_average_equal_peft(made: Made, service: Service) -> None:
    inputs: list[Any] = [*({"image": url_of(each)} for each in PICTURES), *TEXTS]
    asked = {"model": "seen", "input": inputs, "return_members": True}
    answer = service.post("/v1/predict", asked).json()
    every = [*PICTURES, *TEXTS]
    expected = np.array(
        [[made.references[name].probabilities(each) for each in every] for name in NAMES[:3]]
    )
    for place, row in enumerate(answer["data"]):
        said = [[member["probabilities"][label] for label in LABELS] for member in row["members"]]
        np.testing.assert_allclose(said, expected[:, place], atol=1e-4)
        fused = [row["probabilities"][label] for label in LABELS]
        np.testing.assert_allclose(fused, expected[:, place].mean(0), atol=1e-4)


def test_no_request_fails_and_no_answer_is_mixed_while_a_member_is_swapped(
    made: Made, service: Service
) -> None:
    """Images and texts at once."""
    given: dict[str, Any] = {url_of(image): image for image in PICTURES} | dict.fromkeys(TEXTS)
    references = {
        folder_digest(folder): {
            key: made.references[name].probabilities(key if image is None else image)
            for key, image in given.items()
        }
        for name, folder in made.adapters.items()
    }
    body = {"members": {"both": made.adapters["new"].as_uri()}}
    with Load(service.url, "seen", list(given), LABELS, references, clients=4) as load:
        load.wait_for(40)
        swapped = service.post("/v1/ensembles/seen/swap?wait=true", body)
        assert swapped.status_code == 200, swapped.text
        load.wait_for(40)
        back = service.post("/v1/ensembles/seen/rollback?wait=true", {})
        assert back.status_code == 200, back.text
        load.wait_for(40)
    assert load.failures == []
    assert len(load.versions) >= 2


def test_a_hostile_image_is_a_400_with_a_sentence(service: Service) -> None:
    for name, (url, _) in hostile().items():
        response = service.post("/v1/predict", {"model": "seen", "input": {"image": url or " "}})
        assert response.status_code == 400, (name, response.text)
        assert response.json()["error"]["message"].endswith(".")


def test_an_image_with_a_text_beside_it_is_refused(service: Service) -> None:
    image = {"image": url_of(PICTURES[0]), "text": "a sofa"}
    refused = service.post("/v1/predict", {"model": "seen", "input": [image]})
    assert refused.status_code == 400
    assert "text" in refused.json()["error"]["message"]

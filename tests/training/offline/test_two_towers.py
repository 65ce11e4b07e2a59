"""The offline reference over CLIP and SigLIP, against transformers and PEFT without Choir's code."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serve.bundle import Bundle
from serve.manifest import Member
from serve.pack import pack
from tests.serve import towers
from tests.serve.images.hostile import url_of
from training.offline.members import OfflineMembers

PICTURES, TEXTS = towers.pictures(5), towers.texts(4)


@pytest.fixture(scope="module", params=["clip", "siglip"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    root = tmp_path_factory.mktemp("offline")
    base = towers.base(request.param, root / "base")
    targets = towers.TARGETS[request.param]  # type: ignore[index]
    adapters = {
        name: towers.lora(base, root / name, targets[name], seed=seed, rank=4)
        for seed, name in enumerate(("vision", "text", "both"), start=1)
    }
    given: dict[str, Any] = {"task": "classification", "labels": ["x", "y", "z"]}
    bundle = pack(str(base), adapters, root / "bundle", fusion="average", **given)
    return base, adapters, bundle


def test_members_answer_images_and_texts_as_peft_does(made: Any) -> None:
    base, adapters, bundle = made
    members = OfflineMembers(bundle, next(iter(bundle.ensembles())))
    mixed = [*map(url_of, PICTURES[:3]), *TEXTS, *map(url_of, PICTURES[3:])]
    given = [*PICTURES[:3], *TEXTS, *PICTURES[3:]]
    found = members.outputs(mixed)
    expected = [
        [towers.Reference(base, folder).probabilities(each) for each in given]
        for folder in adapters.values()
    ]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.ptp(found, axis=0).max() > 0.1  # members differ


LABELS = ["card", "top_up", "cancel"]
WORDS = {"top_up": "top up"}
PROMPTS = ["a photo of a {label}", "my {label}, please"]


def asked(prompts: list[str]) -> list[list[str]]:
    """The texts of each label."""
    return [[p.replace("{label}", WORDS.get(label, label)) for p in prompts] for label in LABELS]


@pytest.mark.parametrize("prompts", [PROMPTS[:1], PROMPTS])
def test_labels_by_prompts_are_the_scaled_cosines(
    made: Any, tmp_path: Path, prompts: list[str]
) -> None:
    """Members are LoRAs on either tower or on both, and the base."""
    base, _, _ = made
    targets = towers.TARGETS["clip" if "clip" in (base / "config.json").read_text() else "siglip"]
    folders = {
        name: towers.lora(base, tmp_path / name, targets[name], seed=seed, rank=4, labels=None)
        for seed, name in enumerate(("vision", "text", "both"), start=5)
    }
    packed = pack(
        str(base),
        folders,
        tmp_path / "bundle",
        task="classification",
        fusion="average",
        labels=LABELS,
        verbalizers=WORDS,
        prompts=prompts,
    )
    ensemble = next(iter(packed.ensembles()))
    plain = Member(name="base", adapters=[])
    ensemble = ensemble.model_copy(update={"members": [*ensemble.members, plain]})
    given = [*PICTURES[:2], TEXTS[0]]
    found = OfflineMembers(packed, ensemble).outputs([*map(url_of, PICTURES[:2]), TEXTS[0]])
    references = [towers.Reference(base, folder) for folder in (*folders.values(), None)]
    expected = [[each.zero_shot(one, asked(prompts)) for one in given] for each in references]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.ptp(found, axis=0).max() > 0.05  # members differ
    if len(prompts) == 1:
        texts = [text for (text,) in asked(prompts)]
        own = [[each.own_zero_shot(one, texts) for one in PICTURES[:2]] for each in references]
        np.testing.assert_allclose(found[:, :2], own, atol=1e-5)


def test_the_plain_base_gives_its_vectors(made: Any) -> None:
    base, _, bundle = made
    members = OfflineMembers(bundle, next(iter(Bundle.open(bundle.path).ensembles())))
    found = members.base_vectors([url_of(PICTURES[0]), TEXTS[0]])
    reference = towers.Reference(base, None)
    expected = [reference.vector(each).numpy() for each in (PICTURES[0], TEXTS[0])]
    np.testing.assert_allclose(found, expected, atol=1e-5)

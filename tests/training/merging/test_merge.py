"""Merged adapters: PEFT's merges of members with other ranks, layers and scalings, and heads that are exact means."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from peft.utils.merge_utils import ties
from transformers import AutoModel

from serve.adapter import Head
from serve.bundle import Bundle, BundleError
from serve.manifest import Ensemble
from tests.training.merging.conftest import KINDS, WEIGHTS, write_bundle, write_lora
from training.merging.lora import Recipe
from training.merging.merge import merge_ensemble
from training.offline.members import OfflineMembers


def updates(base: Path, folder: Path) -> dict[str, np.ndarray]:
    """What an adapter adds to each weight, by merging it with PEFT."""
    plain = AutoModel.from_pretrained(base).state_dict()
    model = PeftModel.from_pretrained(AutoModel.from_pretrained(base), str(folder))
    merged = model.merge_and_unload().state_dict()
    return {name: (merged[name] - plain[name]).numpy() for name in plain}


@pytest.fixture
def members(lora_bundle: Bundle, encoder_base: Path) -> dict[str, dict[str, np.ndarray]]:
    return {
        member.name: updates(encoder_base, lora_bundle.adapter_dir(member.adapters[0]))
        for member in lora_bundle.ensemble("topics").members
    }


def merged_folder(bundle: Bundle, file: Path) -> Path:
    manifest = Ensemble.model_validate_json(file.read_bytes())
    return bundle.adapter_dir(manifest.members[0].adapters[0])


def test_cat_is_the_weighted_sum_of_the_updates_whatever_the_members_are(
    lora_bundle: Bundle, encoder_base: Path, members: dict[str, dict[str, np.ndarray]]
) -> None:
    merged = merge_ensemble(lora_bundle, "topics", Recipe("cat"))
    assert (merged.rank, merged.members) == (10, ("a", "b", "c"))
    found = updates(encoder_base, merged_folder(lora_bundle, merged.file))
    for name, update in found.items():
        expected = sum(WEIGHTS[member] * own[name] for member, own in members.items())
        np.testing.assert_allclose(update, expected, atol=1e-6)
    changed = {name for name, update in found.items() if np.abs(update).max() > 1e-3}
    assert {
        "encoder.layer.0.attention.self.query.weight",
        "encoder.layer.1.output.dense.weight",
    } <= changed
    assert lora_bundle.verify() == []


def test_svd_is_the_closest_update_of_its_rank(
    lora_bundle: Bundle, encoder_base: Path, members: dict[str, dict[str, np.ndarray]]
) -> None:
    merged = merge_ensemble(lora_bundle, "topics", Recipe("svd", rank=3))
    assert merged.rank == 3
    name = "encoder.layer.1.attention.self.query.weight"
    found = updates(encoder_base, merged_folder(lora_bundle, merged.file))[name]
    u, s, v = np.linalg.svd(sum(WEIGHTS[member] * own[name] for member, own in members.items()))
    np.testing.assert_allclose(found, (u[:, :3] * s[:3]) @ v[:3], atol=1e-5)


def test_ties_is_peft_s_own_with_weights_of_mean_one(
    lora_bundle: Bundle, encoder_base: Path, members: dict[str, dict[str, np.ndarray]]
) -> None:
    merged = merge_ensemble(lora_bundle, "topics", Recipe("ties_svd", rank=32))
    name = "encoder.layer.1.attention.self.query.weight"
    found = updates(encoder_base, merged_folder(lora_bundle, merged.file))[name]
    weights = torch.tensor([3 * weight for weight in WEIGHTS.values()])
    whole = ties([torch.tensor(own[name]) for own in members.values()], weights, density=0.5)
    np.testing.assert_allclose(found, whole.numpy(), atol=1e-5)


def test_a_merged_head_scores_any_vector_as_the_members_heads_do_in_the_mean(
    lora_bundle: Bundle,
) -> None:
    merged = merge_ensemble(lora_bundle, "topics", Recipe("cat"))
    vectors = np.random.default_rng(0).normal(size=(7, 32)).astype(np.float32)
    members = lora_bundle.ensemble("topics").members
    heads = {m.name: Head.read(lora_bundle.adapter_dir(m.adapters[0])) for m in members}
    expected = sum(WEIGHTS[name] * head.scores(vectors) for name, head in heads.items())
    found = Head.read(merged_folder(lora_bundle, merged.file))
    np.testing.assert_allclose(found.scores(vectors), expected, atol=1e-5)
    assert found.normalize


def test_a_merge_of_equal_members_answers_as_they_do(tmp_path: Path, encoder_base: Path) -> None:
    one = write_lora(encoder_base, tmp_path / "one", 5, **KINDS["a"])
    other = shutil.copytree(one, tmp_path / "other")
    (other / "NOTE.md").write_text("Another digest, the same weights.")
    bundle = write_bundle(tmp_path / "bundle", encoder_base, {"one": one, "other": other})
    texts = ["my card is lost", "the transfer is late"]
    alone, _ = OfflineMembers(bundle, bundle.ensemble("topics")).outputs(texts)
    for method in ("cat", "svd"):
        merged = merge_ensemble(bundle, "topics", Recipe(method))
        manifest = Ensemble.model_validate_json(merged.file.read_bytes())
        (found,) = OfflineMembers(bundle, manifest).outputs(texts)
        np.testing.assert_allclose(found, alone, atol=1e-5)


def test_a_merge_is_the_same_files_each_time(lora_bundle: Bundle) -> None:
    first = merge_ensemble(lora_bundle, "topics", Recipe("dare_ties_svd")).file.read_bytes()
    torch.manual_seed(99)
    assert merge_ensemble(lora_bundle, "topics", Recipe("dare_ties_svd")).file.read_bytes() == first
    assert json.loads(first)["scores"]["rung"]["members"] == ["a", "b", "c"]


def test_what_cannot_be_merged_is_refused_with_what_to_do_instead(
    lora_bundle: Bundle, tmp_path: Path, encoder_base: Path
) -> None:
    with pytest.raises(BundleError, match=r"sum of the members' ranks, 10.*--max-rank 10"):
        merge_ensemble(lora_bundle, "topics", Recipe("cat", max_rank=8))
    with pytest.raises(BundleError, match="members of one rank, and theirs are 4, 2, 4"):
        merge_ensemble(lora_bundle, "topics", Recipe("linear"))
    with pytest.raises(BundleError, match=r"rank 100 is more .* --max-rank 100"):
        merge_ensemble(lora_bundle, "topics", Recipe("svd", rank=100))
    adapters = {
        "a": write_lora(encoder_base, tmp_path / "a", 1, **KINDS["a"]),
        "b": write_lora(encoder_base, tmp_path / "b", 2, normalize=False, **KINDS["a"]),
    }
    mixed = write_bundle(tmp_path / "mixed", encoder_base, adapters)
    with pytest.raises(BundleError, match="read the base's vectors in different ways"):
        merge_ensemble(mixed, "topics", Recipe("cat"))


def test_a_soft_adapter_cannot_be_merged(soft_bundle: Bundle) -> None:
    with pytest.raises(BundleError, match="Member 'prefix' is not one LoRA"):
        merge_ensemble(soft_bundle, "topics", Recipe("cat"))

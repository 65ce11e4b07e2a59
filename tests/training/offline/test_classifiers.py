"""Sequence classifiers of PEFT and transformers over BERT-like bases: packed and evaluated as transformers answers."""

import json
from pathlib import Path

import numpy as np
import pytest

from serve.bundle import BundleError
from serve.labels import LabelError
from serve.pack import pack
from tests.serve.adapter.head import families
from tests.serve.adapter.head.families import FAMILIES, LABELS, PAIRS, TEXTS
from training.evaluation.evaluation import rows_to_judge
from training.offline.members import OfflineMembers

PACKED = {"task": "classification", "fusion": "average", "labels": LABELS}


@pytest.mark.parametrize("family", FAMILIES)
def test_members_answer_as_transformers_does(family: str, tmp_path: Path) -> None:
    own = FAMILIES[family]
    base = families.base(family, tmp_path / "base")
    adapters = {
        "a": families.classifier(base, tmp_path / "a", own.attention, seed=1),
        "b": families.classifier(base, tmp_path / "b", own.linear, seed=2, use_rslora=True),
        "mean": families.mean_member(base, tmp_path / "mean", own.attention, seed=3),
    }
    bundle = pack(str(base), adapters, tmp_path / "bundle", **PACKED)  # type: ignore[arg-type]
    members = OfflineMembers(bundle, bundle.ensemble("ensemble"))
    found = members.outputs(TEXTS)
    expected = [families.probabilities(base, folder) for folder in adapters.values()]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.ptp(np.asarray(expected)[:2], axis=1).max() > 0.05, "the texts must differ"
    first, second = zip(*PAIRS, strict=True)
    with pytest.raises(LabelError, match="'mean' reads single texts"):
        members.outputs(first, second)


@pytest.mark.parametrize("family", FAMILIES)
def test_classifiers_read_pairs_as_transformers_joins_them(family: str, tmp_path: Path) -> None:
    base = families.base(family, tmp_path / "base")
    adapters = {
        name: families.classifier(base, tmp_path / name, FAMILIES[family].attention, seed=seed)
        for seed, name in enumerate(("a", "b"), start=1)
    }
    bundle = pack(str(base), adapters, tmp_path / "bundle", **PACKED)  # type: ignore[arg-type]
    first, second = zip(*PAIRS, strict=True)
    found = OfflineMembers(bundle, bundle.ensemble("ensemble")).outputs(first, second)
    expected = [families.probabilities(base, folder, PAIRS) for folder in adapters.values()]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_file_with_a_second_text_is_judged_on_pairs(tmp_path: Path) -> None:
    base = families.base("bert", tmp_path / "base")
    adapters = {"a": families.classifier(base, tmp_path / "a", ["query"], seed=1)}
    bundle = pack(str(base), adapters, tmp_path / "bundle", **PACKED)  # type: ignore[arg-type]
    pairs, single = tmp_path / "pairs.jsonl", tmp_path / "single.jsonl"
    row = {"text": "no", "label": "card"}
    single.write_text(json.dumps(row))
    pairs.write_text(json.dumps({**row, "text_pair": "A B yes"}))
    ensemble = bundle.ensemble("ensemble")
    for file, second in ((pairs, ["A B yes"]), (single, None)):
        judged, _ = rows_to_judge(bundle, ensemble, None, None, file)
        assert (judged.texts, judged.pairs) == (["no"], second)


def test_a_modernbert_that_pools_the_mean_is_read_so(tmp_path: Path) -> None:
    base = families.base(
        "modernbert", tmp_path / "base", classifier_pooling="mean", classifier_activation="silu"
    )
    adapters = {"a": families.classifier(base, tmp_path / "a", ["Wqkv"], seed=1)}
    bundle = pack(str(base), adapters, tmp_path / "bundle", **PACKED)  # type: ignore[arg-type]
    found = OfflineMembers(bundle, bundle.ensemble("ensemble")).outputs(TEXTS)
    np.testing.assert_allclose(found[0], families.probabilities(base, adapters["a"]), atol=1e-5)


def test_a_part_of_the_head_that_was_not_saved_is_named(tmp_path: Path) -> None:
    """A BERT without its pooler: transformers makes a random one at each start."""
    base = families.base("bert", tmp_path / "base")
    adapter = families.classifier(base, tmp_path / "a", ["query"], seed=1)
    from safetensors.numpy import load_file, save_file

    weights = base / "model.safetensors"
    kept = {name: each for name, each in load_file(weights).items() if "pooler" not in name}
    save_file(kept, weights)
    with pytest.raises(BundleError, match=r"needs 'bert.pooler.dense', .* random values"):
        pack(str(base), {"a": adapter}, tmp_path / "bundle", **PACKED)  # type: ignore[arg-type]

"""Rungs of one adapter: the rival of all members, which a recipe asks for."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from serve.bundle import Bundle
from serve.fusion.fuse import Fusion
from serve.fusion.fused import Fused
from tests.training.conftest import recipe_content
from training import lone_rung
from training.leaderboard.rungs import read_rungs
from training.offline.members import OfflineMembers
from training.pipeline import train
from training.recipe import RecipeError, parse_recipe


def ensemble(**changes: Any) -> dict[str, Any]:
    """Two members of other ranks and bags over the tiny rows, and their rival."""
    return {
        "name": "topics",
        "task": "classification",
        "label": "label",
        "defaults": {"epochs": 3, "batch_size": 16, "learning_rate": 0.01},
        "members": [
            {"name": "a", "seed": 4, "rank": 40, "alpha": 80, "bag": 0.5},
            {"name": "b", "seed": 5, "rank": 30},
        ],
        "golden": 2,
        "rivals": True,
        **changes,
    }


def test_a_rival_is_one_adapter_with_all_ranks_that_a_manifest_serves(
    tmp_path: Path,
    write_recipe: Callable[..., Path],
    encoder_base: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    base = {"kind": "encoder", "path": str(encoder_base)}
    recipe = write_recipe(tmp_path, base=base, ensembles=[ensemble()])
    bundle = train(recipe, tmp_path / "bundle")
    [rung] = read_rungs(bundle, "topics")
    assert (rung.name, rung.kind) == ("rival", "rival")
    [member] = rung.manifest.members
    folder = bundle.adapter_dir(member.adapters[0])
    config = json.loads((folder / "adapter_config.json").read_text())
    # The scaling is that of the first member: 80 / 40.
    assert (config["r"], config["lora_alpha"]) == (70, 140)
    assert {name.shape[0] for name in lora_a(folder)} == {70}
    # An engine holds ranks up to 64 unless it is told: the bundle is served all the same.
    assert bundle.verify() == []
    assert [each.name for each in bundle.ensemble("topics").members] == ["a", "b"]
    # The temperature is fitted, and the golden inputs are those that the rung itself answers rightly.
    assert rung.manifest.fusion.temperature != 1
    asked = [str(golden.input) for golden in rung.manifest.golden]
    assert asked
    answer = Fusion(rung.manifest)(OfflineMembers(bundle, rung.manifest).outputs(asked))
    assert isinstance(answer, Fused)
    labels = rung.manifest.labels or []
    right = [labels[winner] for winner in answer.winners]
    assert right == [golden.label for golden in rung.manifest.golden]
    monkeypatch.setattr(lone_rung, "write_rung", lambda *_: pytest.fail("it was made again"))
    train(recipe, tmp_path / "bundle", resume=True)
    stored = Bundle.open(tmp_path / "bundle").validation_scores("topics")
    rows = stored.rows()
    assert rows is not None
    assert stored.outputs(member, rows.header.rows) is not None


def lora_a(folder: Path) -> list[Any]:
    tensors = load_file(folder / "adapter_model.safetensors")
    return [tensor for name, tensor in tensors.items() if "lora_A" in name]


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ([{"name": "a", "kind": "prompt"}], r"rivals puts the ranks .* into one lora; no member"),
        ([{"name": "rival"}, {"name": "b"}], r"the rival is called 'rival'; give the member"),
        (
            [{"name": "a", "rank": 300}, {"name": "b", "rank": 300}],
            r"ranks together are 600, .*512",
        ),
    ],
)
def test_rivals_that_cannot_be_trained_or_served_are_refused(
    members: list[dict[str, Any]], said: str, tmp_path: Path
) -> None:
    content = recipe_content(ensembles=[ensemble(defaults={}, members=members)])
    with pytest.raises(RecipeError, match=said):
        parse_recipe(content, folder=tmp_path)

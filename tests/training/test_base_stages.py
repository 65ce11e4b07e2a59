"""The bundle's base after the stages that train it further."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForCausalLM

from serve.bundle import Bundle
from tests.training.conftest import recipe_content
from training.pipeline import train
from training.recipe import FineTuningStage, RecipeError
from training.stages.fine_tuning import _freeze_above


def test_the_bundle_holds_the_trained_base(chain_bundle: Bundle, causal_bundle: Bundle) -> None:
    assert chain_bundle.info.base.path == "base"
    before, after = (
        load_file(Path(bundle.base_source) / "model.safetensors")
        for bundle in (causal_bundle, chain_bundle)
    )
    assert before.keys() == after.keys()
    assert not torch.equal(before["model.norm.weight"], after["model.norm.weight"])
    # The stages leave no other files beside the bundle.
    assert not (chain_bundle.path / ".choir-train" / "base").exists()


def test_an_encoders_trained_base_is_an_encoder_without_a_head(
    encoder_chain_bundle: Bundle, encoder_base: Path
) -> None:
    before = AutoModel.from_pretrained(encoder_base).state_dict()
    model, loading = AutoModel.from_pretrained(
        encoder_chain_bundle.base_source, output_loading_info=True
    )
    assert not any(loading.values())
    after = model.state_dict()
    assert before.keys() == after.keys()
    name = "encoder.layer.0.attention.self.query.weight"
    assert not torch.equal(before[name], after[name])


@pytest.mark.parametrize("kind", ["causal", "encoder"])
def test_the_first_layers_alone_are_tuned(
    kind: str, causal_bundle: Bundle, encoder_base: Path
) -> None:
    model = (
        AutoModelForCausalLM.from_pretrained(causal_bundle.base_source)
        if kind == "causal"
        else AutoModel.from_pretrained(encoder_base)
    )
    _freeze_above(model, FineTuningStage(layers=1).layers or 0)
    trained = [name for name, weight in model.named_parameters() if weight.requires_grad]
    assert trained
    assert all(".0." in name for name in trained)
    everything = [name for name, _ in model.named_parameters() if ".0." in name]
    assert trained == everything


def test_more_layers_than_the_base_has_are_refused(
    tmp_path: Path, write_recipe: Callable[..., Path], causal_bundle: Bundle
) -> None:
    stages = [{"kind": "fine_tuning", "layers": 9}]
    base = {"kind": "causal", "path": causal_bundle.base_source, "stages": stages}
    recipe = write_recipe(tmp_path, base=base, ensembles=recipe_content()["ensembles"][1:])
    with pytest.raises(RecipeError, match="base: layers is 9, but the base has 2"):
        train(recipe, tmp_path / "bundle")


@pytest.mark.slow
def test_a_soup_is_the_average_of_runs_with_other_seeds(
    tmp_path: Path, write_recipe: Callable[..., Path], causal_bundle: Bundle
) -> None:
    # Without a file of validation rows, the seed would decide which rows are held out.
    data = {"train": "train.csv", "validation": "test.csv", "test": "test.csv"}
    topics = recipe_content()["ensembles"][0]
    ensemble = {key: topics[key] for key in ("name", "task", "label", "template")}
    ensemble |= {"defaults": {"epochs": 1, "rank": 2}, "members": [{"name": "a"}]}

    def tuned(seed: int, soup: int) -> dict[str, torch.Tensor]:
        folder = tmp_path / f"{seed}-{soup}"
        stages = [{"kind": "fine_tuning", "epochs": 1, "soup": soup}]
        base = {"kind": "causal", "path": causal_bundle.base_source, "stages": stages}
        recipe = write_recipe(folder, base=base, data=data, ensembles=[ensemble], seed=seed)
        return load_file(Path(train(recipe, folder / "bundle").base_source) / "model.safetensors")

    one, two, three = (tuned(seed, 1) for seed in (1, 2, 3))
    soup = tuned(1, 3)
    assert soup.keys() == one.keys()
    assert not torch.equal(one["model.norm.weight"], two["model.norm.weight"])
    for name, weight in soup.items():
        torch.testing.assert_close(weight, (one[name] + two[name] + three[name]) / 3)

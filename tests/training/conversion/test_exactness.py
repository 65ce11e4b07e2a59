"""`choir convert` loses nothing in silence, and calls exact only what is."""

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils.other import get_pattern_key
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForCausalLM

from serve.adapter import inspect_adapter
from serve.adapter.folder import read_config
from tests.serve import tiny
from tests.serve.adapter.head import families
from training.conversion import convert as conversion
from training.conversion.convert import Conversion, convert
from training.conversion.errors import ConversionError
from training.conversion.loras import Pair
from training.progress import Unwatched

# PEFT's advice for trainings.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:peft")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.causal_base(tmp_path_factory.mktemp("exactness") / "base", hidden=64, layers=2)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return families.base("bert", tmp_path_factory.mktemp("exactness") / "bert")


def adapted(base: Path, loader: Any, config: Any, folder: Path) -> Path:
    """An adapter all of whose values differ from their start."""
    torch.manual_seed(0)
    model = get_peft_model(loader.from_pretrained(base), config)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    return folder


def with_head(folder: Path, width: int = 64) -> Path:
    torch.manual_seed(1)
    labels = len(families.LABELS)
    head = {"weight": torch.randn(labels, width), "bias": torch.randn(labels)}
    save_file(head, folder / "head.safetensors")
    return folder


def pickled(folder: Path) -> Path:
    weights = folder / "adapter_model.safetensors"
    torch.save(load_file(weights), folder / "adapter_model.bin")
    weights.unlink()
    return folder


def ada(**options: Any) -> Any:
    return peft.AdaLoraConfig(**({"init_r": 6, "target_r": 2, "total_step": 10} | options))


def converted(given: Path, base: Path | None) -> tuple[Path, Conversion]:
    out = given.parent / "converted"
    return out, convert(given, out, Unwatched(), base=base)


BERT = {"r": 4, "target_modules": ["query", "value"]}


@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(**BERT, use_rslora=True),
        LoraConfig(**BERT, init_lora_weights="pissa"),
        LoraConfig(**BERT, use_dora=True),
        peft.LoHaConfig(**BERT),
        ada(target_modules=["query"]),
        "pickle",
    ],
    ids=lambda each: each if isinstance(each, str) else str(each.peft_type),
)
def test_a_head_beside_an_adapter_goes_with_it(bert: Path, tmp_path: Path, config: Any) -> None:
    own = LoraConfig(**BERT) if config == "pickle" else config
    given = with_head(adapted(bert, AutoModel, own, tmp_path / "given"))
    expected = families.probabilities(bert, given)
    out, made = converted(pickled(given) if config == "pickle" else given, bert)
    assert made.exact
    assert inspect_adapter(out, base=bert, base_kind="encoder", head_rows=3).head is not None
    np.testing.assert_allclose(families.probabilities(bert, out), expected, atol=1e-4)


def test_a_head_that_does_not_fit_is_refused(bert: Path, tmp_path: Path) -> None:
    config = LoraConfig(**BERT, use_rslora=True)
    given = with_head(adapted(bert, AutoModel, config, tmp_path / "given"), width=63)
    with pytest.raises(ConversionError, match=r"What was made of it is not served: .*63"):
        converted(given, bert)


def test_the_base_that_an_adapter_recorded_stays_recorded(bert: Path, tmp_path: Path) -> None:
    config = LoraConfig(**BERT, use_dora=True)
    given = with_head(adapted(bert, AutoModel, config, tmp_path / "given"))
    (given / "choir.json").write_text(json.dumps({"base": "sha256:another"}))
    with pytest.raises(ConversionError, match="trained on another base"):
        converted(given, bert)


@torch.no_grad()
def answered(base: Path, adapter: Path) -> torch.Tensor:
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(adapter))
    ids = torch.tensor([[3, 9, 40, 12, 7, 100, 2]])
    return model.eval()(input_ids=ids).logits.double().log_softmax(-1)


@pytest.mark.filterwarnings("ignore:The following rank_pattern keys:RuntimeWarning")
def test_an_adalora_whose_training_took_ranks_away_is_converted(base: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = ada(
        task_type="CAUSAL_LM", tinit=1, tfinal=2, deltaT=1, target_modules=["q_proj", "v_proj"]
    )
    model: Any = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(trained, 0.05)
    ids = torch.randint(3, 100, (4, 12))
    for step in range(1, 11):
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        model.base_model.update_and_allocate(step)
        optimizer.zero_grad()
    given = tmp_path / "given"
    model.save_pretrained(given)
    kept = [sum(ranks) for ranks in read_config(given)["rank_pattern"].values()]
    assert min(kept) == 0 < max(kept) < 6
    out, made = converted(given, base)
    assert (made.kind, made.exact, made.rank) == ("AdaLoRA", True, max(kept))
    torch.testing.assert_close(answered(base, out), answered(base, given), atol=2e-4, rtol=0)


def test_whole_modules_of_an_adalora_are_converted_with_it(base: Path, tmp_path: Path) -> None:
    config = ada(task_type="CAUSAL_LM", target_modules=["q_proj"], modules_to_save=["lm_head"])
    given = adapted(base, AutoModelForCausalLM, config, tmp_path / "given")
    out, made = converted(given, base)
    assert (made.kind, made.exact, made.left_out) == ("AdaLoRA", True, ())
    torch.testing.assert_close(answered(base, out), answered(base, given), atol=2e-4, rtol=0)


def test_what_a_lora_cannot_change_of_an_adalora_is_named(
    base: Path, bert: Path, tmp_path: Path
) -> None:
    saved = ["input_layernorm"]
    config = ada(task_type="CAUSAL_LM", target_modules=["q_proj"], modules_to_save=saved)
    given = adapted(base, AutoModelForCausalLM, config, tmp_path / "norms" / "given")
    _, made = converted(given, base)
    assert not made.exact
    assert made.left_out == tuple(f"model.layers.{n}.input_layernorm.weight" for n in range(2))
    config = ada(target_modules=["query"], bias="all")
    given = with_head(adapted(bert, AutoModel, config, tmp_path / "biases" / "given"))
    _, made = converted(given, bert)
    assert not made.exact
    assert made.answer_difference is not None
    assert made.answer_difference > 1e-2
    assert all(name.endswith("bias") for name in made.left_out)


@pytest.mark.parametrize("form", ["AdaLoRA", "PiSSA"])
def test_exact_is_what_was_measured(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    """A change of weights that is computed wrongly is not called exact."""
    name = "adalora_pairs" if form == "AdaLoRA" else "mutated_pairs"
    right = getattr(conversion, name)

    def wrong(*given: Any) -> dict[str, Pair]:
        pairs: dict[str, Pair] = right(*given)
        return {module: Pair(each.a, each.b, 1.1 * each.scaling) for module, each in pairs.items()}

    monkeypatch.setattr(conversion, name, wrong)
    plain: dict[str, Any] = {"task_type": "CAUSAL_LM", "target_modules": ["q_proj"]}
    with warnings.catch_warnings(action="ignore"):  # PEFT's advice on its own conversion
        config = (
            ada(**plain) if form == "AdaLoRA" else LoraConfig(init_lora_weights="pissa", **plain)
        )
    _, made = converted(adapted(base, AutoModelForCausalLM, config, tmp_path / "given"), base)
    assert (made.kind, made.exact) == (form, False)
    assert made.answer_difference is not None
    assert made.answer_difference > 1e-4


def test_a_tensor_that_has_no_place_in_the_base_is_refused(base: Path, tmp_path: Path) -> None:
    """PEFT leaves out in silence what an adapter of another class of the model holds."""
    given = adapted(base, AutoModel, ada(target_modules=["q_proj"]), tmp_path / "given")
    with pytest.raises(ConversionError, match=r"no place for .*layers\.0.*another class"):
        converted(given, base)


def test_each_module_keeps_its_scaling_where_names_end_alike(tmp_path: Path) -> None:
    ranks = {"q_proj": 4, "model.q_proj": 2, "outer.model.q_proj": 9}
    given = tmp_path / "given"
    given.mkdir()
    save_file(
        {
            f"base_model.model.{name}.lora_{side}.weight": torch.ones(
                *((rank, 8) if side == "A" else (8, rank))
            )
            for name, rank in ranks.items()
            for side in "AB"
        },
        given / "adapter_model.safetensors",
    )
    patterns = {r"outer\.model\.q_proj": 9, r"model\.q_proj": 2}
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 6, "target_modules": list(ranks)}
    config |= {"use_rslora": True, "rank_pattern": patterns}
    (given / "adapter_config.json").write_text(json.dumps(config))
    out, made = converted(given, None)
    assert made.exact
    found = read_config(out)
    for name, rank in ranks.items():
        pattern = get_pattern_key(found["alpha_pattern"], name)
        alpha = found["alpha_pattern"].get(pattern, found["lora_alpha"])
        assert alpha / rank == pytest.approx(6 / rank**0.5), name

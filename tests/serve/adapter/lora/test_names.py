"""Names of an adapter's tensors: every one finds its module as PEFT's own file does, or is refused by name."""

import ast
import importlib.util
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from serve.adapter import AdapterError, has_head, inspect_adapter, plain_adapter
from serve.adapter.lora.embeddings import unserved_embedding
from serve.adapter.lora.modules import Modules
from serve.base.folder import BaseKind, BaseShapes
from serve.digest import folder_digest
from tests.serve.conftest import AdapterFolder

PEFT = "base_model.model."
MakeAdapter = Callable[..., AdapterFolder]
WRAPPED = {
    "compiled": lambda name: name.replace(PEFT, f"{PEFT}_orig_mod."),
    "compiled around PEFT": lambda name: f"_orig_mod.{name}",
    "distributed": lambda name: name.replace(PEFT, f"{PEFT}module."),
    "distributed around PEFT": lambda name: f"module.{name}",
    "sharded": lambda name: name.replace(".self_attn", "._fsdp_wrapped_module.self_attn"),
    "checkpointed": lambda name: name.replace(".mlp", "._checkpoint_wrapped_module.mlp"),
    "all of them": lambda name: (
        "module._orig_mod." + name.replace(PEFT, f"{PEFT}module._fsdp_wrapped_module.")
    ),
}


def renamed(adapter: AdapterFolder, rename: Callable[[str], str]) -> None:
    adapter.set_tensors({rename(name): value for name, value in adapter.tensors().items()})


def peft_answers(base: Path, adapter: Path) -> torch.Tensor:
    """Hidden states or logits of a text, by PEFT in float32."""
    from peft import PeftModel
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

    causal = AutoConfig.from_pretrained(base).model_type == "llama"
    loader = AutoModelForCausalLM if causal else AutoModel
    model = PeftModel.from_pretrained(loader.from_pretrained(base), adapter).eval()
    with torch.no_grad():
        found = model(input_ids=torch.arange(2, 12)[None])
    states: torch.Tensor = found.logits if causal else found.last_hidden_state
    return states


def plain_answers(base: Path, adapter: Path, kind: BaseKind) -> torch.Tensor:
    """The same for what engines and the offline reference load."""
    with plain_adapter(adapter, BaseShapes.read(base), kind) as plain:
        return peft_answers(base, plain)


@pytest.mark.parametrize("wrapper", WRAPPED)
def test_wrappers_names_are_left_out_and_the_digest_stays_that_of_the_files(
    causal_base: Path, make_adapter: MakeAdapter, wrapper: str
) -> None:
    patterns = {
        "rank_pattern": {"layers.1.self_attn.q_proj": 2},
        "alpha_pattern": {"layers.0.mlp.down_proj": 3},
    }
    adapter = make_adapter(causal_base, use_rslora=True, **patterns)
    right = peft_answers(causal_base, adapter.path)
    renamed(adapter, WRAPPED[wrapper])

    info = inspect_adapter(adapter.path, base=causal_base, base_kind="causal")

    assert info.digest == folder_digest(adapter.path)
    assert "model.layers.0.mlp.down_proj" in info.target_modules
    torch.testing.assert_close(plain_answers(causal_base, adapter.path, "causal"), right)


def test_an_adapter_with_peft_s_names_is_loaded_from_its_own_folder(
    causal_base: Path, make_adapter: MakeAdapter
) -> None:
    """So that vLLM finds its cache again, which it keys by the path."""
    adapter = make_adapter(causal_base).path
    with plain_adapter(adapter, BaseShapes.read(causal_base), "causal") as plain:
        assert plain == adapter


def test_two_tensors_of_one_name_are_refused(causal_base: Path, make_adapter: MakeAdapter) -> None:
    adapter = make_adapter(causal_base)
    tensors = adapter.tensors()
    name = next(iter(tensors))
    adapter.set_tensors(tensors | {f"_orig_mod.{name}": tensors[name] * 2})
    with pytest.raises(AdapterError, match=r"holds the tensor 'base_model.* twice"):
        inspect_adapter(adapter.path, base=causal_base)


@pytest.mark.parametrize("layers", ["layers.", "layers.0."], ids=["all", "half"])
def test_names_without_the_models_own_part_are_refused_and_the_right_one_is_said(
    causal_base: Path, make_adapter: MakeAdapter, layers: str
) -> None:
    """vLLM finds no module for them, and PEFT neither: half an adapter would be served."""
    adapter = make_adapter(causal_base)
    renamed(adapter, lambda name: name.replace(f"{PEFT}model.{layers}", f"{PEFT}{layers}"))
    with pytest.raises(AdapterError, match=r"no module 'layers\.0\..*; it has 'model\.layers\.0\."):
        inspect_adapter(adapter.path, base=causal_base, base_kind="causal")


def test_a_wrapper_nobody_knows_is_refused(causal_base: Path, make_adapter: MakeAdapter) -> None:
    adapter = make_adapter(causal_base)
    renamed(adapter, lambda name: name.replace(PEFT, f"{PEFT}wrapped."))
    with pytest.raises(AdapterError, match=r"no module 'wrapped\.model\..*it has 'model\."):
        inspect_adapter(adapter.path, base=causal_base)


def test_a_causal_checkpoint_may_lack_the_part_that_its_model_names(
    causal_base: Path, make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    """As the published GPT-2 do: transformers and vLLM put it before every name."""
    shutil.copytree(causal_base, base := tmp_path / "bare")
    weights = load_file(base / "model.safetensors")
    bare = {name.removeprefix("model."): value for name, value in weights.items()}
    save_file(bare, base / "model.safetensors", metadata={"format": "pt"})
    adapter = make_adapter(causal_base)
    inspect_adapter(adapter.path, base=base, base_kind="causal")
    renamed(adapter, lambda name: name.replace(PEFT, f"{PEFT}transformer."))
    with pytest.raises(AdapterError, match=r"no module 'transformer\.model\.layers"):
        inspect_adapter(adapter.path, base=base, base_kind="causal")


@pytest.mark.parametrize(
    "given", ["language_model.model.layers.0.q_proj", "model.language_model.layers.0.q_proj"]
)
def test_a_model_of_more_than_text_is_matched_in_both_orders_of_its_parts(given: str) -> None:
    """Checkpoints and transformers' versions differ in it, and vLLM maps either."""
    weights = {"language_model.model.layers.0.q_proj.weight": (4, 8), "vision.conv.weight": (2, 2)}
    config = {"architectures": ["LlavaForConditionalGeneration"], "text_config": {}}
    modules = Modules(BaseShapes(weights, config), "causal")
    assert modules.name(given) == given
    assert modules.shape(given) == (4, 8)
    assert modules.name(given.replace("layers.0", "layers.1")) is None


def test_heads_read_a_causal_base_under_both_names(
    causal_base: Path, make_adapter: MakeAdapter
) -> None:
    """vLLM takes both where it pools."""
    adapter = make_adapter(causal_base)
    adapter.add_head()
    right = peft_answers(causal_base, adapter.path)
    renamed(adapter, lambda name: name.replace(f"{PEFT}model.", PEFT))
    inspect_adapter(adapter.path, base=causal_base, base_kind="encoder")
    torch.testing.assert_close(plain_answers(causal_base, adapter.path, "encoder"), right)


def test_an_encoders_own_part_is_left_out_and_so_is_what_no_head_reads(
    encoder_base: Path, make_adapter: MakeAdapter
) -> None:
    adapter = make_adapter(encoder_base, target_modules=["query", "dense"])
    adapter.add_head()
    right = peft_answers(encoder_base, adapter.path)
    renamed(adapter, lambda name: name.replace(PEFT, f"{PEFT}bert."))
    inspect_adapter(adapter.path, base=encoder_base, base_kind="encoder")
    with plain_adapter(adapter.path, BaseShapes.read(encoder_base), "encoder") as plain:
        names = load_file(plain / "adapter_model.safetensors")
        assert not any("pooler" in name for name in names)
        torch.testing.assert_close(peft_answers(encoder_base, plain), right)


def test_an_adapter_of_the_pooler_alone_is_refused(
    encoder_base: Path, make_adapter: MakeAdapter
) -> None:
    adapter = make_adapter(encoder_base, target_modules=["pooler.dense"])
    adapter.add_head()
    with pytest.raises(AdapterError, match=r"changes 'pooler\.dense' alone"):
        inspect_adapter(adapter.path, base=encoder_base, base_kind="encoder")


def test_a_wrapped_head_is_found(causal_base: Path, make_adapter: MakeAdapter) -> None:
    adapter = make_adapter(causal_base)
    score = adapter.tensors()[f"{PEFT}model.layers.0.self_attn.q_proj.lora_A.weight"][:3].copy()
    adapter.set_tensors(adapter.tensors() | {f"{PEFT}_orig_mod.score.weight": score})
    assert has_head(adapter.path)
    info = inspect_adapter(adapter.path, base=causal_base, base_kind="encoder", head_rows=3)
    assert info.head is not None


@pytest.fixture(params=[False, True], ids=["untied", "tied"])
def llama(request: pytest.FixtureRequest, causal_base: Path, tmp_path: Path) -> Path:
    from transformers import LlamaConfig, LlamaForCausalLM

    base = tmp_path / "causal-base" / "base"
    config = LlamaConfig.from_pretrained(causal_base, tie_word_embeddings=request.param)
    LlamaForCausalLM(config).save_pretrained(base)
    return base


EMBEDDING_TARGETS = [
    ["embed_tokens", "q_proj"],
    ["lm_head", "q_proj"],
    ["embed_tokens", "lm_head", "q_proj"],
]


@pytest.mark.parametrize("targets", EMBEDDING_TARGETS, ids=lambda targets: "+".join(targets))
def test_lora_on_embeddings_is_taken_as_peft_saves_it(
    llama: Path, make_adapter: MakeAdapter, targets: list[str]
) -> None:
    adapter = make_adapter(llama, target_modules=targets)
    assert any(".base_layer.weight" in name for name in adapter.tensors()), "PEFT stores them"
    inspect_adapter(adapter.path, base=llama, base_kind="causal")
    right = peft_answers(llama, adapter.path)
    with plain_adapter(adapter.path, BaseShapes.read(llama), "causal") as plain:
        assert all(".lora_" in name for name in load_file(plain / "adapter_model.safetensors"))
        torch.testing.assert_close(peft_answers(llama, plain), right)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_embeddings_that_are_the_bases_in_another_type_are_the_bases(
    causal_base: Path, make_adapter: MakeAdapter, dtype: torch.dtype
) -> None:
    adapter = make_adapter(causal_base, target_modules=["embed_tokens"])
    file = adapter.path / "adapter_model.safetensors"
    save_file({name: value.to(dtype) for name, value in load_file(file).items()}, file)
    inspect_adapter(adapter.path, base=causal_base, base_kind="causal")


def test_embeddings_of_other_values_or_another_size_are_refused_for_that(
    causal_base: Path, make_adapter: MakeAdapter
) -> None:
    adapter = make_adapter(causal_base, target_modules=["embed_tokens", "q_proj"])
    tensors = adapter.tensors()
    name = f"{PEFT}model.embed_tokens.base_layer.weight"
    changed = tensors[name].copy()
    changed[-1, -1] += 0.01
    adapter.set_tensors(tensors | {name: changed})
    with pytest.raises(AdapterError, match=r"a whole 'model\.embed_tokens' with other values"):
        inspect_adapter(adapter.path, base=causal_base)
    del tensors[name]
    larger = changed.repeat(2, axis=0)
    adapter.set_tensors(tensors | {f"{PEFT}model.embed_tokens.weight": larger})
    with pytest.raises(AdapterError, match=r"of \[64, 16\], .* is \[32, 16\]: .*resized"):
        inspect_adapter(adapter.path, base=causal_base)


def test_lora_on_embeddings_is_refused_where_vllm_has_none(
    causal_base: Path, make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    base = tmp_path / "causal-qwen" / "base"
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
    config = Qwen2Config(vocab_size=32, num_attention_heads=2, num_key_value_heads=1, **sizes)
    Qwen2ForCausalLM(config).save_pretrained(base)
    adapter = make_adapter(base, target_modules=["embed_tokens", "q_proj"])
    with pytest.raises(AdapterError, match=r"'model\.embed_tokens' is not served .* Qwen2For"):
        inspect_adapter(adapter.path, base=base, base_kind="causal")


def test_where_vllm_takes_lora_on_embeddings_is_what_its_models_say() -> None:
    spec = importlib.util.find_spec("vllm")
    if spec is None or spec.origin is None:
        pytest.skip("vLLM is not installed")
    folder = Path(spec.origin).parent / "model_executor/models"
    for model, file in {
        "LlamaForCausalLM": "llama.py",
        "MistralForCausalLM": "mistral.py",
        "MixtralForCausalLM": "mixtral.py",
        "Qwen2ForCausalLM": "qwen2.py",
        "Qwen3ForCausalLM": "qwen3.py",
        "Gemma3ForCausalLM": "gemma3.py",
        "CohereForCausalLM": "commandr.py",
        "ExaoneForCausalLM": "exaone.py",
        "GraniteForCausalLM": "granite.py",
    }.items():
        names = _embedding_modules((folder / file).read_text(), model)
        for layer in ("embed_tokens", "wte", "lm_head"):
            config = {"architectures": [model]}
            unserved = unserved_embedding(config, layer, embedding=layer != "lm_head")
            assert (unserved is None) == (layer in names), (model, layer)


def _embedding_modules(source: str, model: str) -> set[str]:
    """What a model's class says itself; none of those looked at inherits it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ClassDef) and node.name == model:
            for line in node.body:
                if isinstance(line, ast.Assign) and "embedding_modules" in ast.unparse(line):
                    found |= set(ast.literal_eval(line.value))
    return found


REFUSED: dict[str, dict[str, Any]] = {
    "no targets": {"target_modules": []},
    "alpha null": {"lora_alpha": None},
    "alpha text": {"lora_alpha": "8"},
    "alpha text in a pattern": {"alpha_pattern": {"q_proj": "8"}},
    "alpha patterns as a list": {"alpha_pattern": ["q_proj"]},
    "unknown task": {"task_type": "TEXT"},
    "dropout of 2": {"lora_dropout": 2.0},
    "dropout text": {"lora_dropout": "0.1"},
    "layers beside a pattern": {
        "target_modules": r".*\.(q|down)_proj",
        "layers_to_transform": [0, 1],
    },
    "layer names alone": {"layers_pattern": "layers"},
    "targets a number": {"target_modules": 5},
    "targets elsewhere": {"target_modules": ["query"]},
}


@pytest.mark.parametrize("fields", REFUSED.values(), ids=REFUSED)
def test_what_peft_refuses_to_load_is_refused(
    causal_base: Path, make_adapter: MakeAdapter, fields: dict[str, Any]
) -> None:
    adapter = make_adapter(causal_base)
    inspect_adapter(adapter.path, base=causal_base)
    peft_answers(causal_base, adapter.path)
    adapter.set_config(**fields)
    with pytest.raises((ValueError, TypeError, AttributeError)):
        peft_answers(causal_base, adapter.path)
    with pytest.raises(AdapterError, match=r"adapter_config\.json"):
        inspect_adapter(adapter.path, base=causal_base)


TARGETS: dict[str, dict[str, Any]] = {
    "all layers": {},
    "nothing, over a Llama": {"target_modules": None},
    "q_proj alone": {"target_modules": ["q_proj"]},
    "by pattern": {"target_modules": r".*\.(q_proj|down_proj)"},
    "a pattern of part": {"target_modules": r"model\.layers\.0\..*"},
    "one layer": {"layers_to_transform": [1]},
    "one layer by its parts' name": {"layers_to_transform": 1, "layers_pattern": ["layers"]},
    "other parts' layers": {"layers_to_transform": [0, 1], "layers_pattern": "blocks"},
    "but one": {"exclude_modules": ["layers.0.self_attn.q_proj"]},
    "but a pattern": {"exclude_modules": r".*down_proj"},
    "linear": {"target_modules": "all-linear"},
    "whole name": {"target_modules": ["model.layers.0.mlp.down_proj", "q_proj"]},
}


# PEFT warns of the very names that are left out here.
@pytest.mark.filterwarnings("ignore:Found missing adapter keys:UserWarning")
@pytest.mark.parametrize("fields", TARGETS.values(), ids=TARGETS)
def test_a_tensor_that_peft_would_pass_over_is_refused(
    causal_base: Path, make_adapter: MakeAdapter, fields: dict[str, Any]
) -> None:
    """Serving takes an adapter exactly where PEFT makes a LoRA of all of its tensors."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    adapter = make_adapter(causal_base)
    adapter.set_config(**fields)
    base = AutoModelForCausalLM.from_pretrained(causal_base)
    try:
        loaded = PeftModel.from_pretrained(base, adapter.path)
        taken = {name.replace(".default", "") for name in loaded.state_dict() if "lora_" in name}
    except ValueError:
        taken = set()
    if set(adapter.tensors()) <= taken:
        inspect_adapter(adapter.path, base=causal_base)
    else:
        with pytest.raises(AdapterError, match=r"does not name the module 'model\.layers\.[01]"):
            inspect_adapter(adapter.path, base=causal_base)

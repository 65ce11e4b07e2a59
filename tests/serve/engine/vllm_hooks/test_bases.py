"""How vLLM is configured for a base, and the tables of bases against vLLM's own registry. No engine starts."""

import ast
from pathlib import Path
from typing import Any

import pytest
import vllm

from serve.base.architectures import BACKEND_REFUSES, ENCODERS
from serve.base.causal_models import MORE_THAN_TEXT, TEXT

pytestmark = pytest.mark.engine

VLLM = Path(vllm.__file__).parent


def made(folder: Path, family: str, **values: Any) -> Path:
    """A config.json as transformers writes it."""
    import transformers

    architecture = values.pop("architecture", f"{family}ForMaskedLM")
    sizes = {"hidden_size": 64, "num_attention_heads": 2, "num_hidden_layers": 1, "vocab_size": 64}
    config = getattr(transformers, f"{family}Config")(**sizes, **values)
    config.architectures = [architecture]
    config.save_pretrained(folder)
    return folder


def arguments(base: Path, kind: str = "encoder", **given: Any) -> Any:
    from serve.engine.vllm_hooks.arguments import engine_args

    return engine_args(
        model=str(base),
        revision=None,
        kind=kind,  # type: ignore[arg-type]
        dtype="float32",
        adapter_slots=1,
        host_adapters=1,
        max_lora_rank=8,
        given=given,
    )


@pytest.mark.parametrize("family", ["Roberta", "XLMRoberta", "Camembert"])
def test_an_engine_takes_no_text_beyond_the_positions_of_a_roberta(
    tmp_path: Path, family: str
) -> None:
    base = made(tmp_path, family, max_position_embeddings=66, pad_token_id=1)
    args = arguments(base)
    assert args.hf_overrides["architectures"] == ["RobertaModel"]
    config = args.create_model_config()
    assert config.max_model_len == 64
    assert config.hf_config.max_position_embeddings == 66  # the table's size stays
    assert arguments(base, max_model_len=32).create_model_config().max_model_len == 32


def test_a_length_without_positions_is_refused(tmp_path: Path) -> None:
    from serve.engine.vllm_hooks.given import EngineSettingError

    base = made(tmp_path, "XLMRoberta", max_position_embeddings=66, pad_token_id=1)
    with pytest.raises(
        EngineSettingError, match=r"max_model_len is 66, .* positions for 64 tokens"
    ):
        arguments(base, max_model_len=66)


def test_a_base_without_lora_is_refused_before_vllm_starts(tmp_path: Path) -> None:
    from serve.engine.vllm_hooks.given import EngineSettingError

    base = made(tmp_path, "GPT2", architecture="GPT2LMHeadModel")
    with pytest.raises(EngineSettingError, match="GPT2LMHeadModel cannot be served"):
        arguments(base, "causal")


def test_overrides_of_a_config_stay_beside_the_backbone(tmp_path: Path) -> None:
    base = made(tmp_path, "Bert", max_position_embeddings=64)
    overrides = arguments(base, hf_overrides={"hidden_act": "relu"}).hf_overrides
    assert overrides == {"hidden_act": "relu", "architectures": ["ChoirBertBackbone"]}


def test_a_clip_is_configured_for_lora_on_both_towers(tmp_path: Path) -> None:
    import transformers

    from serve.engine.vllm_hooks.given import EngineSettingError

    config = transformers.CLIPConfig(projection_dim=600)  # that of the text layers stays 512
    config.architectures = ["CLIPModel"]
    config.save_pretrained(tmp_path)
    args = arguments(tmp_path)
    assert args.hf_overrides["architectures"] == ["ChoirCLIP"]
    assert args.pooler_config.seq_pooling_type == "LAST"
    assert args.enable_tower_connector_lora
    model = args.create_model_config()
    assert model.get_inputs_embeds_size() == 600
    assert model.max_model_len == 77
    with pytest.raises(EngineSettingError, match="enable_tower_connector_lora"):
        arguments(tmp_path, enable_tower_connector_lora=False)


def test_the_packages_entry_point_registers_the_models() -> None:
    """vLLM calls it in each of its processes."""
    import tomllib
    from importlib.metadata import EntryPoint

    from vllm import ModelRegistry

    project = tomllib.loads((Path(__file__).parents[4] / "pyproject.toml").read_text())["project"]
    (value,) = project["entry-points"]["vllm.general_plugins"].values()
    EntryPoint("choir", value, "vllm.general_plugins").load()()
    served = {family.served_as for family in ENCODERS.values() if family.served_as}
    assert served <= set(ModelRegistry.models)


def test_positions_are_those_that_vllm_counts(tmp_path: Path) -> None:
    """For models whose positions vLLM counts right."""
    import transformers
    from vllm.transformers_utils.model_arch_config_convertor import ModelArchConfigConvertorBase

    from serve.base.positions import longest_text

    for config in (
        transformers.LlamaConfig(max_position_embeddings=100),
        transformers.GPT2Config(n_positions=64),
        transformers.OPTConfig(max_position_embeddings=64),
        transformers.ModernBertConfig(max_position_embeddings=64),
        transformers.CohereConfig(max_position_embeddings=64),
    ):
        counted, _ = ModelArchConfigConvertorBase(
            config, config.get_text_config()
        ).derive_max_model_len_and_key()
        assert longest_text(config.to_dict()) == counted, type(config).__name__


def test_backbones_are_models_of_vllm_that_take_lora() -> None:
    from vllm import ModelRegistry
    from vllm.model_executor.models.interfaces import supports_lora

    from serve.engine.vllm_hooks import models

    models.register()
    for family in ENCODERS.values():
        if family.served_as is not None:
            model = ModelRegistry.models[family.served_as].load_model_cls()
            assert supports_lora(model), family.name


def test_encoders_that_are_refused_have_no_model_that_takes_lora() -> None:
    from vllm import ModelRegistry
    from vllm.model_executor.models.interfaces import supports_lora

    for family in ENCODERS.values():
        if family.served_as is None:
            start = family.name.replace(" ", "").lower()
            own = [name for name in ModelRegistry.models if name.lower().startswith(start)]
            assert not any(
                supports_lora(ModelRegistry.models[name].load_model_cls()) for name in own
            )


def test_vllms_transformers_backend_serves_no_adapter_where_a_refusal_says_so() -> None:
    """It replaces linear layers, on which it takes LoRA, and runs models that leave their attention to others."""
    import transformers
    from torch import nn

    gpt2 = transformers.GPT2Model(transformers.GPT2Config(n_embd=8, n_layer=1, n_head=1))
    assert not any(isinstance(module, nn.Linear) for module in gpt2.modules())
    for name in BACKEND_REFUSES.keys() - {"GPT2LMHeadModel"}:
        model = getattr(transformers, name)
        assert not getattr(model, "_supports_attention_backend", False), name


def test_a_head_of_pretraining_is_left_behind() -> None:
    from serve.engine.vllm_hooks.backbones import backbone

    published: Any = [("bert.encoder.w", 1), ("cls.predictions.bias", 2)]
    assert list(backbone(published, "bert")) == [("encoder.w", 1)]
    bare: Any = [("encoder.w", 1), ("pooler.dense.weight", 2)]
    assert list(backbone(bare, "bert")) == bare


@pytest.mark.slow
def test_causal_models_are_those_of_vllms_registry_that_take_lora() -> None:
    """Read in vLLM's source: some of its models cannot be imported without packages that Choir leaves out."""
    names = ("_TEXT_GENERATION_MODELS", "_MULTIMODAL_MODELS", "_TRANSFORMERS_SUPPORTED_MODELS")
    registered: dict[str, str] = {}
    for node in ast.parse((VLLM / "model_executor/models/registry.py").read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) in names:
            registered |= {name: value[1] for name, value in ast.literal_eval(node.value).items()}
    bases = _bases()
    with_lora = {name for name, model in registered.items() if _takes_lora(model, bases)}
    assert with_lora == TEXT | MORE_THAN_TEXT
    assert not TEXT & MORE_THAN_TEXT


def _bases() -> dict[str, set[str]]:
    """The names of the classes that each class of vLLM's models comes from."""
    found: dict[str, set[str]] = {}
    for folder in (VLLM / "model_executor/models", VLLM / "models"):
        for file in folder.rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.ClassDef):
                    own = {ast.unparse(base).split(".")[-1] for base in node.bases}
                    found.setdefault(node.name, set()).update(own)
    return found


def _takes_lora(model: str, bases: dict[str, set[str]], seen: frozenset[str] = frozenset()) -> bool:
    if model == "SupportsLoRA":
        return True
    above = bases.get(model, set()) - seen
    return any(_takes_lora(each, bases, seen | above | {model}) for each in above)

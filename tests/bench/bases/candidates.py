"""Tiny models of many architectures, with random weights, and a LoRA over each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

VOCABULARY, POSITIONS = 120, 64
PADDING = 1
_SIZES: Mapping[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": POSITIONS,
    "pad_token_id": PADDING,
    "bos_token_id": 0,
    "eos_token_id": 2,
}


@dataclass(frozen=True)
class Candidate:
    """A base as it is published: its architecture, and what differs from the usual sizes."""

    architecture: str
    config: str
    """The class of its config in transformers."""
    values: Mapping[str, Any] = field(default_factory=dict)
    targets: str | Sequence[str] = "all-linear"
    """What the LoRA changes."""
    note: str = ""
    heads: bool = False
    """Whether a causal model is seen with heads too."""

    @property
    def name(self) -> str:
        return f"{self.architecture} ({self.note})" if self.note else self.architecture

    def make_config(self) -> Any:
        """Transformers' config of the tiny model, as its `config.json` has it."""
        import transformers

        values = {**_SIZES, **self.values, "architectures": [self.architecture]}
        return getattr(transformers, self.config)(**values)

    def make_base(self, folder: Path) -> None:
        """Save a model whose weights are large enough that each of them shows."""
        import torch
        import transformers

        torch.manual_seed(0)
        model = getattr(transformers, self.architecture)(self.make_config())
        for weight in model.parameters():
            if weight.dim() > 1:
                torch.nn.init.normal_(weight, std=0.15)
        model.save_pretrained(folder)


def _encoders() -> list[Candidate]:
    roberta = {"max_position_embeddings": POSITIONS + 2, "type_vocab_size": 1}
    distilbert = {"dim": 64, "hidden_dim": 128, "n_layers": 2, "n_heads": 2}
    modernbert = {
        "cls_token_id": 0,
        "sep_token_id": 2,
        "global_attn_every_n_layers": 2,
        "local_attention": 8,
    }
    families: dict[str, tuple[str, Mapping[str, Any], Sequence[str], Sequence[str]]] = {
        "Bert": (
            "BertConfig",
            {},
            ("Model", "ForMaskedLM", "ForPreTraining", "ForSequenceClassification"),
            ("query", "key", "value", "dense"),
        ),
        "Roberta": (
            "RobertaConfig",
            roberta,
            ("Model", "ForMaskedLM", "ForSequenceClassification"),
            ("query", "key", "value", "dense"),
        ),
        "XLMRoberta": (
            "XLMRobertaConfig",
            roberta,
            ("Model", "ForMaskedLM"),
            ("query", "key", "value", "dense"),
        ),
        "Camembert": (
            "CamembertConfig",
            roberta,
            ("Model", "ForMaskedLM"),
            ("query", "key", "value", "dense"),
        ),
        "DistilBert": (
            "DistilBertConfig",
            distilbert,
            ("Model", "ForMaskedLM", "ForSequenceClassification"),
            ("q_lin", "k_lin", "v_lin", "out_lin", "lin1", "lin2"),
        ),
        "Electra": (
            "ElectraConfig",
            {"embedding_size": 64},
            ("Model", "ForPreTraining", "ForMaskedLM"),
            ("query", "key", "value", "dense"),
        ),
        "ModernBert": (
            "ModernBertConfig",
            modernbert,
            ("Model", "ForMaskedLM"),
            ("Wqkv", "Wo", "Wi"),
        ),
        "Albert": (
            "AlbertConfig",
            {"embedding_size": 32},
            ("Model", "ForMaskedLM"),
            ("query", "key", "value"),
        ),
        "MPNet": ("MPNetConfig", roberta, ("Model", "ForMaskedLM"), ("q", "k", "v", "o")),
        "DebertaV2": ("DebertaV2Config", {}, ("Model", "ForMaskedLM"), ("query_proj",)),
        "NomicBert": ("NomicBertConfig", {}, ("Model",), ("q_proj",)),
    }
    found = [
        Candidate(f"{family}{ending}", config, values, targets)
        for family, (config, values, endings, targets) in families.items()
        for ending in endings
    ]
    narrow = Candidate(
        "ElectraForPreTraining",
        "ElectraConfig",
        {"embedding_size": 32},
        ("query", "key", "value", "dense"),
        "embeddings narrower than the layers, as electra-small",
    )
    return [*found, narrow]


def _causal() -> list[Candidate]:
    grouped = {"num_key_value_heads": 1}
    head = {**grouped, "head_dim": 32}
    gpt2 = {"n_embd": 64, "n_layer": 2, "n_head": 2, "n_positions": POSITIONS}
    attention = ("q_proj", "k_proj", "v_proj", "o_proj")
    embeddings = ("embed_tokens", "lm_head", "q_proj")
    tied = {**grouped, "tie_word_embeddings": True}
    return [
        Candidate("LlamaForCausalLM", "LlamaConfig", grouped, heads=True),
        Candidate("LlamaForCausalLM", "LlamaConfig", tied, note="tied"),
        Candidate("LlamaForCausalLM", "LlamaConfig", grouped, embeddings, "LoRA on the embeddings"),
        Candidate("LlamaForCausalLM", "LlamaConfig", tied, embeddings, "tied, LoRA on the embeddings"),
        Candidate("MistralForCausalLM", "MistralConfig", grouped),
        Candidate("Qwen2ForCausalLM", "Qwen2Config", grouped, heads=True),
        Candidate("Qwen3ForCausalLM", "Qwen3Config", head),
        Candidate("GemmaForCausalLM", "GemmaConfig", head),
        Candidate("Gemma2ForCausalLM", "Gemma2Config", {**head, "query_pre_attn_scalar": 32}),
        Candidate("Gemma3ForCausalLM", "Gemma3TextConfig", {**head, "query_pre_attn_scalar": 32}),
        Candidate("Phi3ForCausalLM", "Phi3Config", grouped),
        Candidate("PhiForCausalLM", "PhiConfig"),
        Candidate("GPTNeoXForCausalLM", "GPTNeoXConfig"),
        Candidate("GPTBigCodeForCausalLM", "GPTBigCodeConfig", gpt2),
        Candidate("OPTForCausalLM", "OPTConfig", {"ffn_dim": 128, "word_embed_proj_dim": 64}, heads=True),
        Candidate("OlmoForCausalLM", "OlmoConfig", grouped),
        Candidate("Olmo2ForCausalLM", "Olmo2Config", grouped),
        Candidate("GraniteForCausalLM", "GraniteConfig", grouped),
        Candidate("SmolLM3ForCausalLM", "SmolLM3Config", grouped),
        Candidate("Starcoder2ForCausalLM", "Starcoder2Config", grouped),
        Candidate("CohereForCausalLM", "CohereConfig", grouped),
        Candidate("Glm4ForCausalLM", "Glm4Config", head, attention),
        Candidate("GPT2LMHeadModel", "GPT2Config", gpt2),
        Candidate("GPTJForCausalLM", "GPTJConfig", {**gpt2, "rotary_dim": 16}),
        Candidate("BloomForCausalLM", "BloomConfig", {"n_layer": 2, "n_head": 2}),
        Candidate("FalconForCausalLM", "FalconConfig"),
        Candidate("MptForCausalLM", "MptConfig", {"d_model": 64, "n_layers": 2, "n_heads": 2}),
        Candidate("StableLmForCausalLM", "StableLmConfig", grouped),
        Candidate("T5ForConditionalGeneration", "T5Config", {"d_model": 64}),
    ]  # fmt: skip


CANDIDATES = (*_encoders(), *_causal())

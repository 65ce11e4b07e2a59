"""Says which bases are served: those that vLLM 0.32 runs with LoRA and answers as transformers does.

The tables are written down here, so that a bundle is checked without loading vLLM. Tests compare them with vLLM's
registry, and docs/bases.md shows what was measured for each architecture.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from serve.base.causal_models import DIFFERENT, MORE_THAN_TEXT, TEXT
from serve.base.two_towers import CLIP, SIGLIP, unserved_towers
from serve.base.vision_language import vision_language_model

VLLM = "vLLM 0.32"

BERT_BACKBONE = "ChoirBertBackbone"
DISTILBERT_BACKBONE = "ChoirDistilBertBackbone"
"""The models of `serve/engine/vllm_hooks/backbones.py`."""

_NO_MODEL = f"{VLLM} has no model of it"

BACKEND_REFUSES: Mapping[str, str] = {
    "GPT2LMHeadModel": "it puts LoRA on linear layers, and this model has none but Conv1D",
    **dict.fromkeys(
        ("BloomForCausalLM", "FalconForCausalLM", "GPTJForCausalLM", "MptForCausalLM"),
        "it cannot run this model's attention",
    ),
}
"""Architectures that people try because vLLM runs them -> why transformers' own code in vLLM serves no LoRA of them."""


@dataclass(frozen=True)
class Encoder:
    """A family of encoders: the models of one `model_type`."""

    name: str
    served_as: str | None = None
    """The model of vLLM that computes its vectors; None if it is not served."""
    published: tuple[str, ...] = ()
    """Architectures that hold only this backbone and a pretraining head, which is not loaded."""
    reason: str = ""
    """Why it is not served, as the words after 'because'."""


ENCODERS: Mapping[str, Encoder] = {
    "albert": Encoder("ALBERT", reason=_NO_MODEL),
    "bert": Encoder(
        "BERT",
        BERT_BACKBONE,
        ("BertModel", "BertForMaskedLM", "BertForPreTraining", "BertForNextSentencePrediction"),
    ),
    "camembert": Encoder("CamemBERT", "RobertaModel", ("CamembertModel", "CamembertForMaskedLM")),
    "clip": Encoder("CLIP", CLIP, ("CLIPModel",)),
    "deberta": Encoder("DeBERTa", reason=_NO_MODEL),
    "deberta-v2": Encoder("DeBERTa", reason=_NO_MODEL),
    "distilbert": Encoder(
        "DistilBERT", DISTILBERT_BACKBONE, ("DistilBertModel", "DistilBertForMaskedLM")
    ),
    "electra": Encoder(
        "ELECTRA",
        BERT_BACKBONE,
        ("ElectraModel", "ElectraForPreTraining", "ElectraForMaskedLM"),
    ),
    "modernbert": Encoder(
        "ModernBERT", "ModernBertModel", ("ModernBertModel", "ModernBertForMaskedLM")
    ),
    "mpnet": Encoder("MPNet", reason=_NO_MODEL),
    "nomic_bert": Encoder("Nomic BERT", reason=f"{VLLM}'s model of it takes no LoRA"),
    "roberta": Encoder("RoBERTa", "RobertaModel", ("RobertaModel", "RobertaForMaskedLM")),
    "siglip": Encoder("SigLIP", SIGLIP, ("SiglipModel",)),
    "xlm-roberta": Encoder(
        "XLM-RoBERTa", "RobertaModel", ("XLMRobertaModel", "XLMRobertaForMaskedLM")
    ),
}
"""By `model_type`."""


def unserved_base(config: Mapping[str, Any], kind: Literal["causal", "encoder"]) -> str | None:
    """Returns why no engine can serve a base with this `config.json`, in a sentence; None if one can."""
    names = architectures(config)
    family = ENCODERS.get(str(config.get("model_type")))
    if family is not None:
        return _unserved_encoder(family, names, config, kind)
    if not names:
        return (
            "The base's config.json names no architectures, so nobody can tell which model it is."
        )
    if DIFFERENT.intersection(names):
        return (
            f"A base of the architecture {names[0]} cannot be served: {VLLM}'s model of it does not answer as "
            "transformers does."
        )
    if (TEXT | MORE_THAN_TEXT).intersection(names):
        return None
    why = BACKEND_REFUSES.get(names[0])
    more = f", and its Transformers backend does not stand in: {why}" if why else ""
    return f"A base of the architecture {names[0]} cannot be served: {VLLM} has no model of it that takes LoRA{more}."


def served_as(config: Mapping[str, Any]) -> str | None:
    """Returns the architecture that vLLM must be given in place of the one in a served base's `config.json`; None if
    vLLM can use that one."""
    family = ENCODERS.get(str(config.get("model_type")))
    return family.served_as if family is not None else vision_language_model(config)


def architectures(config: Mapping[str, Any]) -> list[str]:
    """Returns the names in a `config.json`; none if there is no list of names."""
    names = config.get("architectures")
    return [str(name) for name in names] if isinstance(names, list) else []


def _unserved_encoder(
    family: Encoder, names: list[str], config: Mapping[str, Any], kind: str
) -> str | None:
    refused = f"The base is {family.name} and cannot be served"
    if family.served_as is None:
        return f"{refused}, because {family.reason}."
    if kind == "causal":
        return f'{refused} as "causal": it reads a text as a whole and writes none. Its kind is "encoder".'
    unknown = [name for name in names if name not in family.published]
    if unknown:
        return (
            f"{refused} as {unknown[0]}, whose own head would not be asked: save the model without it (transformers: "
            "AutoModel.from_pretrained(...).save_pretrained(...)) and give each adapter a head.safetensors."
        )
    positions = config.get("position_embedding_type") or "absolute"
    if positions != "absolute":
        return f"{refused} with positions of the type {positions!r}: only absolute ones are."
    hidden = config.get("hidden_size")
    if config.get("embedding_size", hidden) != hidden:
        return f"{refused} with embeddings that are not as wide as its layers ({VLLM} has no model that widens them)."
    if family.served_as in (CLIP, SIGLIP) and (reason := unserved_towers(config)) is not None:
        return f"{refused} {reason}."
    if config.get("is_decoder"):
        return f"{refused} as a decoder (is_decoder in config.json): each token must see the whole text."
    return None

"""Tiny BERT-like bases as they are published, sequence classifiers over them as PEFT makes them, and what transformers
and PEFT answer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerFast,
)

from tests.serve.tiny import CORPUS

LABELS = ("card", "money", "address")
TEXTS = ("where is my card", "please cancel the payment that I made this morning", "A B yes", "no")
PAIRS = (
    ("where is my card", "please cancel the payment that I made this morning"),
    ("no", "A B yes"),
    ("A B yes", "no"),
)
TYPED = ("bert", "electra")
"""The families whose models tell the two texts of a pair apart by types of tokens."""


@dataclass(frozen=True)
class Family:
    """One family of encoders: the model that is published, and modules for a LoRA."""

    published: str
    config: str
    attention: Sequence[str] = ("query", "value")
    linear: Sequence[str] = ("query", "key", "value", "dense")
    """More modules; those of a frozen part of the head are among them, where the family has one."""
    values: Mapping[str, Any] = field(default_factory=dict)


_SIZES = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 66,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "cls_token_id": 0,
    "eos_token_id": 2,
    "sep_token_id": 2,
}
FAMILIES = {
    "bert": Family("BertForPreTraining", "BertConfig"),
    "roberta": Family("RobertaForMaskedLM", "RobertaConfig", values={"type_vocab_size": 1}),
    "xlm-roberta": Family(
        "XLMRobertaForMaskedLM", "XLMRobertaConfig", values={"type_vocab_size": 1}
    ),
    "camembert": Family("CamembertForMaskedLM", "CamembertConfig", values={"type_vocab_size": 1}),
    "electra": Family("ElectraForPreTraining", "ElectraConfig", values={"embedding_size": 64}),
    "distilbert": Family(
        "DistilBertForMaskedLM",
        "DistilBertConfig",
        ("q_lin", "v_lin"),
        ("q_lin", "k_lin", "v_lin", "out_lin", "lin1", "lin2"),
        {"dim": 64, "hidden_dim": 128, "n_layers": 2, "n_heads": 2},
    ),
    "modernbert": Family(
        "ModernBertForMaskedLM",
        "ModernBertConfig",
        ("Wqkv", "Wo"),
        ("Wqkv", "Wo", "Wi", "dense"),
        {"global_attn_every_n_layers": 2, "local_attention": 8},
    ),
}


def base(family: str, folder: Path, **values: Any) -> Path:
    """A base of a family with random weights, with the head of its pretraining, and a tokenizer of words."""
    own = FAMILIES[family]
    words = sorted({word for line in CORPUS for word in line.replace(",", "").split()})
    vocabulary = {word: at for at, word in enumerate(["<s>", "<pad>", "</s>", "<unk>", *words])}
    tokens = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokens.pre_tokenizer = pre_tokenizers.Whitespace()
    tokens.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> $B:1 </s>:1",
        special_tokens=[("<s>", 0), ("</s>", 2)],
    )
    inputs = ["input_ids", "attention_mask", *(["token_type_ids"] if family in TYPED else [])]
    PreTrainedTokenizerFast(
        tokenizer_object=tokens,
        pad_token="<pad>",
        unk_token="<unk>",
        model_input_names=inputs,
    ).save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {**_SIZES, **own.values, **values, "vocab_size": len(vocabulary)}
    model = getattr(transformers, own.published)(getattr(transformers, own.config)(**sizes))
    _random(model, 0.15)
    model.save_pretrained(folder)
    return folder


def classifier(
    base: Path, folder: Path, targets: Sequence[str], *, seed: int, **options: Any
) -> Path:
    """A LoRA for SEQ_CLS, with the head that PEFT saves for it."""
    torch.manual_seed(seed)
    model = _classifier(base)
    for name, weight in model.named_parameters():
        if "classifier" in name:
            torch.nn.init.normal_(weight, std=0.3)
    config = LoraConfig(
        task_type="SEQ_CLS", r=4, lora_alpha=8, target_modules=list(targets), **options
    )
    return _saved(get_peft_model(model, config), folder)


def mean_member(base: Path, folder: Path, targets: Sequence[str], *, seed: int) -> Path:
    """A LoRA with a head of its own over the mean of the tokens."""
    torch.manual_seed(seed)
    model: Any = AutoModel.from_pretrained(base, dtype=torch.float32)
    _saved(get_peft_model(model, LoraConfig(r=4, target_modules=list(targets))), folder)
    weight = torch.randn(len(LABELS), model.config.hidden_size) * 0.3
    save_file({"weight": weight, "bias": torch.randn(len(LABELS))}, folder / "head.safetensors")
    return folder


@torch.no_grad()
def probabilities(
    base: Path, adapter: Path, texts: Sequence[str | tuple[str, str]] = TEXTS
) -> list[list[float]]:
    """What transformers and PEFT answer [texts, labels], text by text or pair by pair."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    own = adapter / "head.safetensors"
    plain: Any = AutoModel.from_pretrained(base) if own.is_file() else _classifier(base)
    model: Any = PeftModel.from_pretrained(plain, str(adapter)).eval()
    found = []
    for text in texts:
        each = (text,) if isinstance(text, str) else text
        output = model(**tokenizer(*each, return_tensors="pt"))
        if own.is_file():
            head = load_file(own)
            logits = head["weight"] @ output.last_hidden_state.mean(1)[0] + head["bias"]
        else:
            logits = output.logits[0]
        found.append(logits.double().softmax(-1).tolist())
    return found


def tokens(base: Path) -> tuple[tuple[int, ...], ...]:
    """The token ids of the texts."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    return tuple(tuple(tokenizer(text)["input_ids"]) for text in TEXTS)


@torch.no_grad()
def vectors(base: Path, adapter: Path | None, pooling: str) -> Any:
    """What transformers and PEFT make of the texts [texts, width]: the mean over the tokens, or the first one's."""
    own_head = adapter is not None and (adapter / "head.safetensors").is_file()
    model: Any = AutoModel.from_pretrained(base) if own_head else _classifier(base)
    if adapter is not None:
        PeftModel.from_pretrained(model, str(adapter))  # puts the LoRA into the model itself
    backbone = model.base_model.eval()
    found = []
    for ids in tokens(base):
        hidden = backbone(torch.tensor([ids])).last_hidden_state[0]
        found.append(hidden[0] if pooling == "cls" else hidden.mean(0))
    return torch.stack(found).numpy()


def _classifier(base: Path) -> Any:
    return AutoModelForSequenceClassification.from_pretrained(
        base, num_labels=len(LABELS), dtype=torch.float32
    )


def _saved(model: Any, folder: Path) -> Path:
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.2)
    model.save_pretrained(folder)
    return folder


def _random(model: torch.nn.Module, std: float) -> None:
    for weight in model.parameters():
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=std)

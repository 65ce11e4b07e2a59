"""Tiny but real models: a Llama and a BERT with tokenizers, and PEFT adapters with random weights."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from peft import (
    LoraConfig,
    PeftConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    get_peft_model,
)
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertTokenizerFast,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

CORPUS = [
    "where is my card and why has it not arrived yet",
    "my transfer is still pending, please tell me when the money will be there",
    "I want to top up my account with another card",
    "the machine kept my card, I need a new one as soon as possible",
    "please cancel the payment that I made this morning",
    "how do I change my address and my phone number",
    "A B C D E F G H yes no",
] * 20

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


def causal_base(
    folder: Path, *, context: int = 1024, seed: int = 0, layers: int = 2, hidden: int = 128
) -> Path:
    """A Llama, by default of about 0.3M parameters whose weights are large enough that no two tokens tie."""
    tokens = Tokenizer(models.BPE())
    tokens.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokens.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=["<|end|>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokens.train_from_iterator(CORPUS, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokens, eos_token="<|end|>", pad_token="<pad>"
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=hidden,
            intermediate_size=2 * hidden,
            num_hidden_layers=layers,
            num_attention_heads=hidden // 32,
            num_key_value_heads=hidden // 64,
            max_position_embeddings=context,
            eos_token_id=0,
            bos_token_id=0,
            pad_token_id=1,
        )
    )
    _spread(model, 0.15)
    model.save_pretrained(folder)
    return folder


def encoder_base(folder: Path, *, seed: int = 0) -> Path:
    """A BERT of about 0.2M parameters, as BERTs are published: with the head of its pretraining."""
    folder.mkdir(parents=True, exist_ok=True)
    words = sorted({word for line in CORPUS for word in line.lower().replace(",", "").split()})
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    tokenizer = BertTokenizerFast(str(folder / "vocab.txt"))
    tokenizer.save_pretrained(folder)
    torch.manual_seed(seed)
    model = BertForMaskedLM(
        BertConfig(
            vocab_size=len(vocabulary),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=128,
        )
    )
    _spread(model, 0.15)
    model.save_pretrained(folder)
    return folder


def sentence_transformer(base: Path, *, width: int) -> Path:
    """Write beside an encoder what sentence-transformers stores: other pooling, a Dense layer that makes `width` values
    of the 64, normalisation, and special tokens in lower case."""
    kinds = ["Transformer", "Pooling", "Dense", "Normalize"]
    names = ["", *(f"{place}_{kind}" for place, kind in enumerate(kinds[1:], 1))]
    modules = [
        {
            "idx": place,
            "name": str(place),
            "path": name,
            "type": f"sentence_transformers.models.{kind}",
        }
        for place, (kind, name) in enumerate(zip(kinds, names, strict=True))
    ]
    pooling = {"word_embedding_dimension": 64, "pooling_mode_cls_token": True}
    activation = "torch.nn.modules.activation.Tanh"
    dense = {"in_features": 64, "out_features": width, "bias": True}
    for name, content in {
        "modules.json": modules,
        "1_Pooling/config.json": pooling | {"pooling_mode_mean_tokens": False},
        "2_Dense/config.json": dense | {"activation_function": activation},
        "3_Normalize/config.json": {},
        "sentence_bert_config.json": {"max_seq_length": 128, "do_lower_case": True},
    }.items():
        (base / name).parent.mkdir(exist_ok=True)
        (base / name).write_text(json.dumps(content))
    generator = torch.Generator().manual_seed(3)
    layer = {
        "linear.weight": torch.randn(width, 64, generator=generator) * 0.2,
        "linear.bias": torch.randn(width, generator=generator) * 0.1,
    }
    save_file(layer, base / "2_Dense" / "model.safetensors")
    return base


def lora(
    base: Path,
    folder: Path,
    *,
    seed: int,
    rank: int = 8,
    targets: Sequence[str] = ("q_proj", "v_proj"),
    scale: float = 0.2,
    alpha: int = 16,
    stabilised: bool = False,
    invocation: Sequence[int] | None = None,
) -> Path:
    """A LoRA adapter over a causal base that changes its answers; rank-stabilised (rsLoRA) if asked for, or an
    activated one."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    _adapt(model, folder, seed, rank, targets, scale, alpha, "CAUSAL_LM", stabilised, invocation)
    return folder


def prefix(base: Path, folder: Path, *, seed: int, tokens: int, projection: bool = False) -> Path:
    """Prefix tuning over a causal base: keys and values of every layer, as large as the base's own."""
    config = PrefixTuningConfig(
        task_type="CAUSAL_LM",
        num_virtual_tokens=tokens,
        prefix_projection=projection,
        encoder_hidden_size=48 if projection else None,
    )
    return _soft(base, folder, seed, config)


def prompt(base: Path, folder: Path, *, seed: int, tokens: int) -> Path:
    """Prompt tuning over a causal base."""
    return _soft(
        base, folder, seed, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=tokens)
    )


def p_tuning(base: Path, folder: Path, *, seed: int, tokens: int, encoder: str = "MLP") -> Path:
    """P-tuning over a causal base, with one of PEFT's two encoders."""
    config = PromptEncoderConfig(
        task_type="CAUSAL_LM",
        num_virtual_tokens=tokens,
        encoder_hidden_size=48,
        encoder_reparameterization_type=encoder,
    )
    return _soft(base, folder, seed, config)


def _soft(base: Path, folder: Path, seed: int, config: PeftConfig) -> Path:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    torch.manual_seed(seed)
    adapted = get_peft_model(model, config)
    for name, weight in adapted.named_parameters():
        if "prompt_encoder" in name and weight.dim() > 1 and "embedding" not in name:
            torch.nn.init.normal_(weight, std=0.3)  # so that no two rows of an encoder are alike
    adapted.save_pretrained(folder)
    return folder


def lora_with_head(
    base: Path,
    folder: Path,
    *,
    labels: int,
    seed: int,
    rank: int = 4,
    normalize: bool = False,
    towers: bool = False,
) -> Path:
    """A LoRA adapter with a head of its own, over pairs of texts for `towers`; the base is an encoder, or a Llama."""
    causal = AutoConfig.from_pretrained(base).model_type == "llama"
    loader = AutoModelForCausalLM if causal else AutoModel
    model = loader.from_pretrained(base, dtype=torch.float32)
    targets = ("q_proj", "v_proj") if causal else ("query", "value")
    _adapt(model, folder, seed, rank, targets, 0.2, 8, None)
    generator = torch.Generator().manual_seed(seed)
    width = model.config.hidden_size * (4 if towers else 1)
    save_file(
        {
            "weight": torch.randn(labels, width, generator=generator),
            "bias": torch.randn(labels, generator=generator),
        },
        folder / "head.safetensors",
        metadata={"normalize": str(normalize).lower(), **({"pair": "towers"} if towers else {})},
    )
    return folder


def classifier(base: Path, folder: Path, *, labels: int, seed: int) -> Path:
    """PEFT's own sequence classifier over a causal base: a LoRA, and the head `score` in `modules_to_save`."""
    torch.manual_seed(seed)
    model = AutoModelForSequenceClassification.from_pretrained(
        base, num_labels=labels, dtype=torch.float32
    )
    torch.nn.init.normal_(model.score.weight)
    _adapt(model, folder, seed, 4, ("q_proj", "v_proj"), 0.2, 8, "SEQ_CLS")
    return folder


def _adapt(
    model: torch.nn.Module,
    folder: Path,
    seed: int,
    rank: int,
    targets: Sequence[str],
    scale: float,
    alpha: int,
    task: str | None,
    stabilised: bool = False,
    invocation: Sequence[int] | None = None,
) -> None:
    torch.manual_seed(seed)
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        target_modules=list(targets),
        task_type=task,
        use_rslora=stabilised,
        alora_invocation_tokens=None if invocation is None else list(invocation),
    )
    adapted = get_peft_model(model, config)
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=scale)
    adapted.save_pretrained(folder)


def _spread(model: torch.nn.Module, std: float) -> None:
    for weight in model.parameters():
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=std)


class Reference:
    """What PEFT and transformers answer, in float32: the independent reference for everything served."""

    def __init__(self, base: Path, *adapters: Path | None) -> None:
        """With no adapter, one, or a LoRA and a soft one, in this order."""
        self.tokenizer = AutoTokenizer.from_pretrained(base)
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        *before, last = adapters or (None,)
        for each in before:
            model = PeftModel.from_pretrained(model, each).merge_and_unload()
        self.model = (PeftModel.from_pretrained(model, last) if last else model).eval()

    @torch.no_grad()
    def logits(self, ids: Sequence[int], start: int | None = None) -> torch.Tensor:
        """[len(ids), vocabulary]; PEFT gives those of virtual tokens too, where they are embeddings.

        `start`: where an activated LoRA begins to act. PEFT alone would take an invocation that was generated."""
        offsets = {} if start is None else {"alora_offsets": [len(ids) - start]}
        return self.model(torch.tensor([list(ids)]), **offsets).logits[0, -len(ids) :]

    @torch.no_grad()
    def label_scores(self, prompt: str, labels: Sequence[str]) -> list[float]:
        """Sum of log-probabilities of each label's tokens, one full forward pass a label."""
        stem = prompt.rstrip(" ")
        start = self.tokenizer(stem)["input_ids"]
        scores = []
        for label in labels:
            ids = self.tokenizer(stem + prompt[len(stem) :] + label)["input_ids"]
            first = 0
            while first < min(len(start), len(ids)) and start[first] == ids[first]:
                first += 1
            logs = self.logits(ids).log_softmax(-1)
            scores.append(sum(logs[i - 1, ids[i]].item() for i in range(first, len(ids))))
        return scores

    def probabilities(self, prompt: str, labels: Sequence[str]) -> list[float]:
        """Softmax of the label scores."""
        scores = torch.tensor(self.label_scores(prompt, labels), dtype=torch.float64)
        return [float(p) for p in scores.softmax(0)]

    @torch.no_grad()
    def greedy(self, prompt: str, tokens: int) -> list[int]:
        """The most likely continuation."""
        ids = self.tokenizer(prompt, return_tensors="pt")["input_ids"]
        output = self.model.generate(
            input_ids=ids, max_new_tokens=tokens, do_sample=False, pad_token_id=1, eos_token_id=None
        )
        return [int(token) for token in output[0, ids.shape[1] :]]


class EncoderReference:
    """The same for an encoder with a head."""

    def __init__(self, base: Path, adapter: Path) -> None:
        from safetensors.torch import load_file

        self.tokenizer = AutoTokenizer.from_pretrained(base)
        model = AutoModel.from_pretrained(base, dtype=torch.float32)
        self.model = PeftModel.from_pretrained(model, adapter).eval()
        self.head = load_file(adapter / "head.safetensors")

    def probabilities(self, text: str, *, normalize: bool = False) -> list[float]:
        return [float(p) for p in self.scores(text, normalize=normalize).softmax(0)]

    @torch.no_grad()
    def scores(
        self, text: str, pair: str | None = None, *, normalize: bool = False
    ) -> torch.Tensor:
        """What the head says about a text, or about a pair as two towers: [labels]."""
        vectors = self.pooled(text, normalize=normalize)
        if pair is not None:
            u, v = vectors, self.pooled(pair, normalize=normalize)
            vectors = torch.cat([u, v, (u - v).abs(), u * v])
        return (self.head["weight"] @ vectors + self.head["bias"]).double()

    @torch.no_grad()
    def pooled(self, text: str, *, normalize: bool = False) -> torch.Tensor:
        """The mean of the tokens' vectors: [width]."""
        batch = self.tokenizer(text, return_tensors="pt")
        pooled = self.model(**batch).last_hidden_state.mean(1)[0]
        return torch.nn.functional.normalize(pooled, dim=0) if normalize else pooled


class ClassifierReference:
    """The same for a causal base with a head: transformers' own sequence classification, which knows no bias.

    The head is the folder's `head.safetensors`, or what PEFT loads of `modules_to_save`."""

    def __init__(self, base: Path, adapter: Path) -> None:
        from safetensors.torch import load_file

        self.tokenizer = AutoTokenizer.from_pretrained(base)
        own = adapter / "head.safetensors"
        head = load_file(own) if own.is_file() else None
        saved = load_file(adapter / "adapter_model.safetensors")
        labels = len(head["bias"] if head else saved["base_model.model.score.weight"])
        model = AutoModelForSequenceClassification.from_pretrained(
            base, num_labels=labels, dtype=torch.float32
        )
        if head:
            model.score.weight.data = head["weight"]
        self.bias = head["bias"] if head else torch.zeros(labels)
        self.model = PeftModel.from_pretrained(model, adapter).eval()

    @torch.no_grad()
    def probabilities(self, text: str) -> list[float]:
        batch = self.tokenizer(text, return_tensors="pt")
        logits = self.model(**batch).logits[0] + self.bias
        return [float(p) for p in logits.double().softmax(0)]

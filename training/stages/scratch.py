"""A small causal base from nothing: a byte-level BPE tokenizer and a Llama- or Qwen2-shaped model."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    set_seed,
)

from training.recipe import Scratch
from training.stages.causal import collate_for
from training.stages.fit import FitOptions, Stage, fit

END, PAD = "<|end|>", "<|pad|>"

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}Assistant: {{ message['content'] }}" + END + "\n"
    "{% else %}{{ message['role'] | capitalize }}: {{ message['content'] }}\n{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)
"""`User: <text>` and `Assistant: <text>` lines; a recipe's template in the same words lets chat reach its members."""


def train_base(
    scratch: Scratch,
    rows: Dataset,
    vocabulary_texts: Iterable[str],
    target: Path,
    seed: int,
    stage: Stage,
) -> None:
    """Train the tokenizer and the model on documents made of `rows`, and save both in `target`.

    `vocabulary_texts` (labels and templates) are seen by the tokenizer, never by the model.
    """
    documents = [template.format_map(row) for row in rows for template in scratch.documents]
    tokenizer = train_tokenizer(
        [*documents, *vocabulary_texts], scratch.vocabulary, scratch.context
    )
    set_seed(seed)
    model = AutoModelForCausalLM.from_config(_config(scratch, tokenizer))
    features = _features(documents, tokenizer, scratch.context)
    options = FitOptions(scratch.epochs, scratch.batch_size, scratch.learning_rate, seed)
    fit(model, features, collate_for(tokenizer), options, stage)
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


def train_tokenizer(texts: Sequence[str], vocabulary: int, context: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with an end and a padding token and a chat template; it adds no special tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=PAD,
        model_max_length=context,
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )


def _config(scratch: Scratch, tokenizer: PreTrainedTokenizerFast) -> PreTrainedConfig:
    shape = {
        "vocab_size": len(tokenizer),
        "hidden_size": scratch.hidden,
        "intermediate_size": scratch.intermediate or scratch.hidden * 8 // 3 // 32 * 32,
        "num_hidden_layers": scratch.layers,
        "num_attention_heads": scratch.heads,
        "num_key_value_heads": scratch.kv_heads or scratch.heads,
        "max_position_embeddings": scratch.context,
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    if scratch.architecture == "qwen2":
        return Qwen2Config(**shape)
    return LlamaConfig(**shape, head_dim=scratch.head_size)


def _features(
    documents: Sequence[str], tokenizer: PreTrainedTokenizerFast, context: int
) -> Dataset:
    rows = []
    for document in documents:
        ids = [*tokenizer(document)["input_ids"][: context - 1], tokenizer.eos_token_id]
        rows.append({"input_ids": ids, "labels": ids, "length": len(ids)})
    return Dataset.from_list(rows)

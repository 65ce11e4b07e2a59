"""Trains a small base from scratch: a tokenizer, and a causal model (Llama, Qwen2) or an encoder (BERT)."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertForPreTraining,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    set_seed,
)

from training.recipe import Scratch, default_objective
from training.stages.documents import Documents
from training.stages.fit import FitOptions, Stage
from training.stages.pretraining import Pretrained, pretrain, save_pretrained

END, PAD = "<|end|>", "<|pad|>"
BERT_TOKENS = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}Assistant: {{ message['content'] }}" + END + "\n"
    "{% else %}{{ message['role'] | capitalize }}: {{ message['content'] }}\n{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)
"""Lines of `User: <text>` and `Assistant: <text>`. With a recipe's template in the same form, members answer chats."""


def train_base(
    scratch: Scratch,
    rows: Dataset,
    vocabulary_texts: Iterable[str],
    target: Path,
    seed: int,
    stage: Stage,
) -> Pretrained:
    """Train the tokenizer and the model on documents made from `rows`, and save both in `target`.

    `vocabulary_texts` (labels and templates) are only for the tokenizer. Raises RecipeError.
    """
    documents = Documents.of(rows, scratch.documents)
    texts = [*documents.texts, *vocabulary_texts]
    objective = scratch.objective or default_objective(scratch.kind)
    options = FitOptions(scratch.epochs, scratch.batch_size, scratch.learning_rate, seed)
    if scratch.kind == "causal":
        tokenizer = train_tokenizer(texts, scratch.vocabulary, scratch.context)
        set_seed(seed)
        model = AutoModelForCausalLM.from_config(_config(scratch, tokenizer))
    else:
        tokenizer = train_word_pieces(texts, scratch.vocabulary, scratch.context)
        set_seed(seed)
        model = BertForPreTraining(_bert_config(scratch, tokenizer))
    found = pretrain(model, tokenizer, documents, objective, options, stage)
    save_pretrained(model, tokenizer, target)
    return found


def train_tokenizer(texts: Sequence[str], vocabulary: int, context: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer with an end token, a padding token and a chat template. It adds no special
    tokens to texts."""
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


def train_word_pieces(
    texts: Sequence[str], vocabulary: int, context: int
) -> PreTrainedTokenizerFast:
    """Train a lower-case WordPiece tokenizer with BERT's special tokens, which it puts around one text or two.

    The same texts give the same tokenizer. For this, the pieces inside words are passed to the library in order:
    otherwise it numbers them in the order of its hash tables, and breaks ties by these numbers."""
    learner = _word_pieces(models.WordPiece(unk_token="[UNK]"))
    words = {
        word
        for text in texts
        for word, _ in learner.pre_tokenizer.pre_tokenize_str(
            learner.normalizer.normalize_str(text)
        )
    }
    inside = sorted({f"##{letter}" for word in words for letter in word[1:]})
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocabulary,
        special_tokens=[*BERT_TOKENS.values(), *inside],
        show_progress=False,
    )
    learner.train_from_iterator(texts, trainer)
    # A second tokenizer, in which the pieces inside words are not special tokens.
    tokenizer = _word_pieces(models.WordPiece(learner.get_vocab(), unk_token="[UNK]"))
    ids = {token: number for number, token in enumerate(BERT_TOKENS.values())}
    tokenizer.post_processor = processors.BertProcessing(
        ("[SEP]", ids["[SEP]"]), ("[CLS]", ids["[CLS]"])
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=context, **BERT_TOKENS
    )


def _word_pieces(model: models.WordPiece) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def llama_shape(scratch: Scratch, tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """Return the part of a causal model's configuration that the recipe and the tokenizer decide."""
    return {
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


def _config(scratch: Scratch, tokenizer: PreTrainedTokenizerFast) -> PreTrainedConfig:
    shape = llama_shape(scratch, tokenizer)
    if scratch.architecture == "qwen2":
        return Qwen2Config(**shape)
    return LlamaConfig(**shape, head_dim=scratch.head_size)


def _bert_config(scratch: Scratch, tokenizer: PreTrainedTokenizerFast) -> PreTrainedConfig:
    return BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=scratch.hidden,
        intermediate_size=scratch.intermediate or 4 * scratch.hidden,
        num_hidden_layers=scratch.layers,
        num_attention_heads=scratch.heads,
        max_position_embeddings=scratch.context,
        pad_token_id=tokenizer.pad_token_id,
    )

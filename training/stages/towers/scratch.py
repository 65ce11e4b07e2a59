"""Makes a small CLIP or SigLIP from nothing, and trains it on images and their captions."""

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPProcessor,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipImageProcessorPil,
    SiglipModel,
    SiglipProcessor,
    set_seed,
)

from training.recipe import Scratch
from training.stages.documents import Documents
from training.stages.fit import FitOptions, Stage
from training.stages.towers.contrastive import train_on_captions
from training.stages.towers.inputs import TowerInputs

START, END = "<|startoftext|>", "<|endoftext|>"
FIRST_SCALE = math.log(10)
"""The start of the logarithm of SigLIP's scale (Zhai et al. 2023)."""


def train_towers(
    scratch: Scratch,
    rows: Dataset,
    image: str | None,
    vocabulary_texts: Sequence[str],
    target: Path,
    seed: int,
    stage: Stage,
) -> None:
    """Train a tokenizer and a CLIP or SigLIP on the captions that `scratch.documents` make of `rows`, and save both in
    `target`.

    `image` is the column of the images; `vocabulary_texts` are only for the tokenizer. Raises RecipeError."""
    captions = Documents.of(rows, scratch.documents).texts
    start = START if scratch.architecture == "clip" else None
    texts = [*captions, *vocabulary_texts]
    tokenizer = train_tokenizer(texts, scratch.vocabulary, scratch.context, start)
    set_seed(seed)
    if scratch.architecture == "clip":
        model, processor = _clip(scratch, tokenizer)
    else:
        model, processor = _siglip(scratch, tokenizer, first_bias(captions, scratch.batch_size))
    # The model is written first too: what it reads is read from its folder.
    model.save_pretrained(target)
    processor.save_pretrained(target)
    options = FitOptions(scratch.epochs, scratch.batch_size, scratch.learning_rate, seed)
    inputs = TowerInputs(str(target))
    train_on_captions(model, inputs, rows, image, scratch.documents, options, stage)
    model.save_pretrained(target)


def train_tokenizer(
    texts: Sequence[str], vocabulary: int, context: int, start: str | None
) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer that puts the token `start`, if there is one, before each text and an end token
    behind it."""
    tokens = Tokenizer(models.BPE())
    tokens.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokens.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokens.train_from_iterator(texts, trainer)
    special = [START, END] if start else [END]
    tokens.add_special_tokens(special)  # last: vLLM takes token 0 for images
    tokens.post_processor = processors.TemplateProcessing(
        single=f"{START} $A {END}" if start else f"$A {END}",
        special_tokens=[(each, tokens.token_to_id(each)) for each in special],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokens,
        bos_token=start,
        eos_token=END,
        pad_token=END,
        model_max_length=context,
    )


def first_bias(captions: Sequence[str], batch_size: int) -> float:
    """Return the start of SigLIP's bias: the logit of the share of a batch's pairs that belong together. So training
    does not begin with steps that only learn this share (Zhai et al. 2023, whose -10 is for batches of 32,768)."""
    counts = Counter(captions).values()
    equal = sum((count / len(captions)) ** 2 for count in counts)
    share = 1 / batch_size + (1 - 1 / batch_size) * equal
    return math.log(share / (1 - share)) if share < 1 else 0.0


def _clip(scratch: Scratch, tokenizer: PreTrainedTokenizerFast) -> tuple[Any, Any]:
    size = {"height": scratch.image_size, "width": scratch.image_size}
    images = CLIPImageProcessorPil(size={"shortest_edge": scratch.image_size}, crop_size=size)
    config = CLIPConfig(
        projection_dim=scratch.hidden,
        text_config=_text(scratch, tokenizer),
        vision_config=_vision(scratch),
    )
    return CLIPModel(config), CLIPProcessor(images, tokenizer)


def _siglip(scratch: Scratch, tokenizer: PreTrainedTokenizerFast, bias: float) -> tuple[Any, Any]:
    size = {"height": scratch.image_size, "width": scratch.image_size}
    text = {**_text(scratch, tokenizer), "projection_size": scratch.hidden}
    model = SiglipModel(SiglipConfig(text_config=text, vision_config=_vision(scratch)))
    with torch.no_grad():
        model.logit_scale.fill_(FIRST_SCALE)
        model.logit_bias.fill_(bias)
    return model, SiglipProcessor(SiglipImageProcessorPil(size=size), tokenizer)


def _layers(scratch: Scratch) -> dict[str, Any]:
    return {
        "hidden_size": scratch.hidden,
        "intermediate_size": scratch.intermediate or 4 * scratch.hidden,
        "num_hidden_layers": scratch.layers,
        "num_attention_heads": scratch.heads,
    }


def _text(scratch: Scratch, tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    end = tokenizer.eos_token_id
    return {
        **_layers(scratch),
        "vocab_size": len(tokenizer),
        "max_position_embeddings": scratch.context,
        "bos_token_id": end if tokenizer.bos_token_id is None else tokenizer.bos_token_id,
        "eos_token_id": end,
        "pad_token_id": tokenizer.pad_token_id,
    }


def _vision(scratch: Scratch) -> dict[str, Any]:
    sizes = {"image_size": scratch.image_size, "patch_size": scratch.patch_size}
    return {**_layers(scratch), **sizes}

"""Makes a small CLIP from nothing, and trains it on images and their captions."""

from collections.abc import Sequence
from pathlib import Path

from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPProcessor,
    PreTrainedTokenizerFast,
    set_seed,
)

from training.recipe import Scratch
from training.stages.documents import Documents
from training.stages.fit import FitOptions, Stage
from training.stages.towers.contrastive import train_on_captions
from training.stages.towers.inputs import TowerInputs

START, END = "<|startoftext|>", "<|endoftext|>"


def train_clip(
    scratch: Scratch,
    rows: Dataset,
    image: str | None,
    vocabulary_texts: Sequence[str],
    target: Path,
    seed: int,
    stage: Stage,
) -> None:
    """Train a tokenizer and a CLIP on the captions that `scratch.documents` make of `rows`, and save both in `target`.

    `image` is the column of the images; `vocabulary_texts` are only for the tokenizer. Raises RecipeError."""
    captions = Documents.of(rows, scratch.documents).texts
    tokenizer = train_tokenizer([*captions, *vocabulary_texts], scratch.vocabulary, scratch.context)
    set_seed(seed)
    model = CLIPModel(_config(scratch, tokenizer))
    size = {"height": scratch.image_size, "width": scratch.image_size}
    images = CLIPImageProcessorPil(size={"shortest_edge": scratch.image_size}, crop_size=size)
    # The model is written first too: what it reads is read from its folder.
    model.save_pretrained(target)
    CLIPProcessor(images, tokenizer).save_pretrained(target)
    options = FitOptions(scratch.epochs, scratch.batch_size, scratch.learning_rate, seed)
    inputs = TowerInputs(str(target))
    train_on_captions(model, inputs, rows, image, scratch.documents, options, stage)
    model.save_pretrained(target)


def train_tokenizer(texts: Sequence[str], vocabulary: int, context: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer that puts a start and an end token around each text."""
    tokens = Tokenizer(models.BPE())
    tokens.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokens.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokens.train_from_iterator(texts, trainer)
    tokens.add_special_tokens([START, END])  # last: vLLM takes token 0 for images
    tokens.post_processor = processors.TemplateProcessing(
        single=f"{START} $A {END}",
        special_tokens=[(each, tokens.token_to_id(each)) for each in (START, END)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokens,
        bos_token=START,
        eos_token=END,
        pad_token=END,
        model_max_length=context,
    )


def _config(scratch: Scratch, tokenizer: PreTrainedTokenizerFast) -> CLIPConfig:
    both = {
        "hidden_size": scratch.hidden,
        "intermediate_size": scratch.intermediate or 4 * scratch.hidden,
        "num_hidden_layers": scratch.layers,
        "num_attention_heads": scratch.heads,
    }
    text = {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": scratch.context,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {"image_size": scratch.image_size, "patch_size": scratch.patch_size}
    return CLIPConfig(
        projection_dim=scratch.hidden,
        text_config={**both, **text},
        vision_config={**both, **vision},
    )

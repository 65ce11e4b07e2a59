"""Makes a small Idefics3 from nothing, and trains it on documents with images."""

from collections.abc import Sequence
from pathlib import Path

from datasets import Dataset
from transformers import (
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3ImageProcessorPil,
    Idefics3Processor,
    PreTrainedTokenizerFast,
    set_seed,
)

from training.recipe import Scratch
from training.stages.fit import FitOptions, Stage
from training.stages.pretraining import Pretrained
from training.stages.scratch import END, llama_shape, train_tokenizer
from training.stages.vision_language.documents import pretrain_on_images
from training.stages.vision_language.prompts import ImagePrompts

IMAGE = "<image>"
AROUND_IMAGES = ("<fake_token_around_image>", "<global-img>", "<end_of_utterance>")
"""The names that transformers' and vLLM's processors of Idefics3 know."""
MERGED = 2
"""So many patches of a row, and of a column, become one token (Idefics3's pixel shuffle)."""

_CONTENT = (
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}" + IMAGE + "{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}"
)
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}Assistant: " + _CONTENT + END + "\n"
    "{% else %}{{ message['role'] | capitalize }}: " + _CONTENT + "{{ '\\n' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)
"""The chat template of a causal base from nothing, with images in messages."""


def train_idefics3(
    scratch: Scratch,
    rows: Dataset,
    image: str,
    vocabulary_texts: Sequence[str],
    target: Path,
    seed: int,
    stage: Stage,
) -> Pretrained:
    """Train a tokenizer and an Idefics3 on the documents that `scratch.documents` make of `rows`, and save both in
    `target`. An image is one square of `scratch.image_size`; it is not split into tiles.

    `image` is the column of the images; `vocabulary_texts` are only for the tokenizer. Raises RecipeError."""
    unseen = [{**row, image: ""} for row in rows]
    documents = [each.format_map(row) for row in unseen for each in scratch.documents]
    texts = [*documents, *vocabulary_texts]
    tokenizer = train_tokenizer(texts, scratch.vocabulary, scratch.context)
    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE, *AROUND_IMAGES]})
    tokenizer.chat_template = CHAT_TEMPLATE
    set_seed(seed)
    model = Idefics3ForConditionalGeneration(_config(scratch, tokenizer))
    side = {"longest_edge": scratch.image_size}
    images = Idefics3ImageProcessorPil(size=side, max_image_size=side, do_image_splitting=False)
    tokens = (scratch.image_size // scratch.patch_size // MERGED) ** 2
    processor = Idefics3Processor(
        images, tokenizer, image_seq_len=tokens, chat_template=CHAT_TEMPLATE
    )
    # What it reads is read from its folder, so this is written first.
    model.config.save_pretrained(target)
    processor.save_pretrained(target)
    options = FitOptions(scratch.epochs, scratch.batch_size, scratch.learning_rate, seed)
    prompts = ImagePrompts(str(target))
    found = pretrain_on_images(
        model, tokenizer, prompts, rows, image, scratch.documents, options, stage
    )
    model.save_pretrained(target)
    return found


def _config(scratch: Scratch, tokenizer: PreTrainedTokenizerFast) -> Idefics3Config:
    vision = {
        "hidden_size": scratch.hidden,
        "intermediate_size": scratch.intermediate or 4 * scratch.hidden,
        "num_hidden_layers": scratch.layers,
        "num_attention_heads": scratch.heads,
        "image_size": scratch.image_size,
        "patch_size": scratch.patch_size,
    }
    return Idefics3Config(
        image_token_id=tokenizer.convert_tokens_to_ids(IMAGE),
        scale_factor=MERGED,
        pad_token_id=tokenizer.pad_token_id,
        vision_config=vision,
        # Words are not tied to the image token's vector, so that the base never learns to write it.
        tie_word_embeddings=False,
        text_config={
            "model_type": "llama",
            **llama_shape(scratch, tokenizer),
            "head_dim": scratch.head_size,
            "tie_word_embeddings": False,
        },
    )

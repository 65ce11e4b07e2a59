"""Tiny bases and bundles: a causal base of about 100,000 parameters, and an encoder of the same size."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from serve.bundle import Bundle
from training.pipeline import train

TOPICS = {
    "card": ["my card is lost", "where is the new card", "the card does not work"],
    "transfer": ["the transfer is late", "send money abroad", "my transfer failed"],
    "top_up": ["add money to my account", "the top up failed", "how do i top up"],
}
REPLIES = {"card": "We send a card.", "transfer": "We look at it.", "top_up": "Please try again."}


def write_rows(file: Path, count: int) -> Path:
    """`count` rows of different texts, labels in turn."""
    lines = ["text,label,reply"]
    for number in range(count):
        label = list(TOPICS)[number % len(TOPICS)]
        asks = TOPICS[label]
        text = f"{asks[number // len(TOPICS) % len(asks)]} number {number}"
        lines.append(f"{text},{label},{REPLIES[label]}")
    file.write_text("\n".join(lines) + "\n")
    return file


def recipe_content(**changes: Any) -> dict[str, Any]:
    """A small recipe over `train.csv` and `test.csv` beside it."""
    options = {"epochs": 2, "batch_size": 16, "rank": 4, "learning_rate": 0.01}
    content: dict[str, Any] = {
        "name": "tiny",
        "seed": 3,
        "precision": "float32",
        "base": {
            "kind": "causal",
            "scratch": {
                "hidden": 64,
                "layers": 2,
                "heads": 2,
                "kv_heads": 1,
                "vocabulary": 400,
                "context": 96,
                "documents": ["User: {text}\nAssistant: {reply}"],
                "epochs": 2,
                "batch_size": 16,
            },
        },
        "data": {"train": "train.csv", "test": "test.csv", "validation_fraction": 0.25},
        "ensembles": [
            {
                "name": "topics",
                "task": "classification",
                "label": "label",
                "template": "User: {text}\nTopic: ",
                "verbalizers": {"top_up": "topping up an account"},
                "defaults": options,
                "members": [
                    {"name": "a", "seed": 1, "bag": 0.8},
                    {
                        "name": "b",
                        "seed": 2,
                        "bag": "bootstrap",
                        "target_modules": ["q_proj", "v_proj"],
                    },
                ],
                "candidates": [{"name": "a2", "member": "a", "seed": 9}],
                "baselines": ["tfidf_svc"],
                "golden": 2,
            },
            {
                "name": "replies",
                "task": "generation",
                "target": "reply",
                "template": "User: {text}\nAssistant:",
                "max_new_tokens": 8,
                "evaluation_rows": 6,
                "defaults": options,
                "members": [{"name": "a", "seed": 1}, {"name": "b", "seed": 2, "rank": 2}],
                "fusion": {"candidates": ["stack"]},
                "extract": {"regex": r"\w+"},
            },
        ],
    }
    return content | changes


@pytest.fixture(scope="session")
def write_recipe() -> Callable[..., Path]:
    """Writes `recipe.yaml` and its data into a folder and returns the recipe's path."""

    def write(folder: Path, **changes: Any) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        write_rows(folder / "train.csv", 96)
        write_rows(folder / "test.csv", 30)
        file = folder / "recipe.yaml"
        file.write_text(yaml.safe_dump(recipe_content(**changes)))
        return file

    return write


@pytest.fixture(scope="session")
def causal_bundle(
    tmp_path_factory: pytest.TempPathFactory, write_recipe: Callable[..., Path]
) -> Bundle:
    folder = tmp_path_factory.mktemp("causal")
    return train(write_recipe(folder), folder / "bundle")


SOFT_MEMBERS: list[dict[str, Any]] = [
    {"name": "lora", "seed": 1, "rank": 4},
    {"name": "prefix", "seed": 2, "kind": "prefix", "virtual_tokens": 5},
    {"name": "projected", "seed": 3, "kind": "prefix", "virtual_tokens": 3, "projection": 16},
    {
        "name": "prompt",
        "seed": 4,
        "kind": "prompt",
        "virtual_tokens": 6,
        "init": "Which topic is it?",
    },
    {"name": "p-tuning", "seed": 5, "kind": "p_tuning", "virtual_tokens": 4, "encoder_hidden": 16},
    {
        "name": "lora-prompt",
        "seed": 6,
        "stages": [{"kind": "lora", "rank": 4}, {"kind": "prompt", "virtual_tokens": 4}],
    },
    {
        "name": "lora-prefix",
        "seed": 7,
        "stages": [{"kind": "lora", "rank": 2}, {"kind": "prefix", "virtual_tokens": 2}],
    },
]
"""A member of every kind of adapter under a causal base."""


@pytest.fixture(scope="session")
def soft_bundle(
    tmp_path_factory: pytest.TempPathFactory,
    write_recipe: Callable[..., Path],
    causal_bundle: Bundle,
) -> Bundle:
    """Both ensembles on the base of `causal_bundle`, with a member of every kind, and a candidate of two stages."""
    folder = tmp_path_factory.mktemp("soft")
    ensembles = recipe_content()["ensembles"]
    for ensemble in ensembles:
        ensemble["defaults"] = {"epochs": 1, "batch_size": 16, "learning_rate": 0.02}
        ensemble["members"] = SOFT_MEMBERS
    ensembles[0]["candidates"] = [SOFT_MEMBERS[5] | {"name": "both", "member": "lora", "seed": 9}]
    base = {"kind": "causal", "path": causal_bundle.base_source}
    return train(write_recipe(folder, base=base, ensembles=ensembles), folder / "bundle")


def chained(stages: list[dict[str, Any]], **options: Any) -> list[dict[str, Any]]:
    """A teacher of two members, and a chain of stages before and after distillation."""
    teacher = {"ensemble": "topics"}
    common = {"task": "classification", "label": "label", **options}
    learned = {"kind": "distillation", "teacher": teacher, "epochs": 8, "learning_rate": 0.01}
    return [
        {
            **common,
            "name": "topics",
            "members": [{"name": "a", "seed": 1}, {"name": "b", "seed": 2}],
        },
        {**common, "name": "undistilled", "members": [{"name": "a", "seed": 3, "stages": stages}]},
        {
            **common,
            "name": "student",
            "members": [{"name": "a", "seed": 3, "stages": [*stages, learned]}],
        },
    ]


@pytest.fixture(scope="session")
def chain_bundle(
    tmp_path_factory: pytest.TempPathFactory,
    write_recipe: Callable[..., Path],
    causal_bundle: Bundle,
) -> Bundle:
    """The base of `causal_bundle`, trained further for all members, and a chain of every kind of stage."""
    folder = tmp_path_factory.mktemp("chain")
    topics = recipe_content()["ensembles"][0]
    ensembles = chained(
        [
            {"kind": "lora", "rank": 4, "rslora": True, "layers": 1},
            {"kind": "prompt", "virtual_tokens": 4, "early_stopping": 1},
        ],
        template=topics["template"],
        verbalizers=topics["verbalizers"],
        defaults={"epochs": 2, "batch_size": 16, "rank": 4},
    )
    base = {
        "kind": "causal",
        "path": causal_bundle.base_source,
        "stages": [
            {"kind": "pretraining", "documents": ["{reply}"], "epochs": 1},
            {"kind": "fine_tuning", "ensembles": ["topics"], "layers": 1, "epochs": 1},
        ],
    }
    return train(write_recipe(folder, base=base, ensembles=ensembles), folder / "bundle")


@pytest.fixture(scope="session")
def encoder_chain_bundle(
    tmp_path_factory: pytest.TempPathFactory, write_recipe: Callable[..., Path], encoder_base: Path
) -> Bundle:
    folder = tmp_path_factory.mktemp("encoder-chain")
    defaults = {"epochs": 2, "batch_size": 16, "rank": 4, "learning_rate": 0.01}
    ensembles = chained([{"kind": "lora"}], defaults=defaults)
    stages = [
        {"kind": "pretraining", "objective": "masked", "epochs": 1},
        {"kind": "fine_tuning", "ensembles": ["topics"], "epochs": 1},
    ]
    base = {"kind": "encoder", "path": str(encoder_base), "stages": stages}
    return train(write_recipe(folder, base=base, ensembles=ensembles), folder / "bundle")


@pytest.fixture(scope="session")
def encoder_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained BERT with a word-level tokenizer that adds [CLS] and [SEP]."""
    folder = tmp_path_factory.mktemp("encoder-base")
    words = sorted({word for asks in TOPICS.values() for ask in asks for word in ask.split()})
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
    tokenizer = Tokenizer(
        models.WordLevel({name: index for index, name in enumerate(names)}, "[UNK]")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        mask_token="[MASK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(names),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def encoder_bundle(
    tmp_path_factory: pytest.TempPathFactory, write_recipe: Callable[..., Path], encoder_base: Path
) -> Bundle:
    folder = tmp_path_factory.mktemp("encoder")
    ensemble = recipe_content()["ensembles"][0] | {
        "template": "{text}",
        "verbalizers": {},
        "candidates": [],
    }
    ensemble["members"] = [{"name": "a", "seed": 1}, {"name": "b", "seed": 2, "normalize": False}]
    base = {"kind": "encoder", "path": str(encoder_base)}
    return train(write_recipe(folder, base=base, ensembles=[ensemble]), folder / "bundle")

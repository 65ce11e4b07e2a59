"""Bases from scratch: each objective learns more than how often tokens occur, and the saved model loads."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    BertForPreTraining,
)

from tests.training.conftest import TOPICS
from training.data.steps import FAMILY
from training.execution.progress_table import ProgressTable
from training.recipe import RecipeError, Scratch
from training.stages import pretraining
from training.stages.documents import Documents
from training.stages.fit import IGNORED, FitOptions, FitRows, Stage
from training.stages.pretraining import (
    Pretrained,
    _demand_sentences,
    _Masking,
    _sentence_pairs,
)
from training.stages.scratch import train_base, train_word_pieces

ASKS = [ask for asks in TOPICS.values() for ask in asks]
DOCUMENTS = [f"{first}. {second}." for first in ASKS for second in ASKS]
SIZES = {"hidden": 64, "layers": 1, "heads": 2, "vocabulary": 320, "context": 48, "epochs": 12}


def scratch(objective: str) -> Scratch:
    architecture = "llama" if objective == "autoregressive" else "bert"
    options = {"batch_size": 16, "learning_rate": 5e-3, **SIZES}
    return Scratch(architecture=architecture, objective=objective, **options)


@pytest.mark.parametrize("objective", ["autoregressive", "masked", "masked_next_sentence"])
def test_the_loss_falls_below_a_unigram_models_and_the_checkpoint_loads(
    objective: str, tmp_path: Path
) -> None:
    rows = Dataset.from_dict({"text": DOCUMENTS})
    base = tmp_path / "base"
    with ProgressTable() as progress_table:
        stage = Stage("base", tmp_path / "checkpoints", "float32", progress_table)
        found = train_base(scratch(objective), rows, [], base, 1, stage)
    assert found.loss < found.unigram
    tokenizer = AutoTokenizer.from_pretrained(base)
    loader = AutoModelForCausalLM if objective == "autoregressive" else AutoModel
    model, loading = loader.from_pretrained(base, output_loading_info=True)
    assert not any(loading.values())
    with torch.inference_mode():
        out = model(**tokenizer("my card is lost", return_tensors="pt"))
    assert torch.isfinite(out[0]).all()
    if objective != "autoregressive":
        first, second = tokenizer("my card", "is lost"), tokenizer("my card")
        assert first["input_ids"][: len(second["input_ids"])] == second["input_ids"]
        assert tokenizer.decode(first["input_ids"]) == "[CLS] my card [SEP] is lost [SEP]"


def test_about_a_seventh_of_the_places_is_masked_and_only_they_have_a_loss(tmp_path: Path) -> None:
    tokenizer = train_word_pieces(DOCUMENTS, 320, 48)
    ids = [tokenizer(document)["input_ids"] for document in DOCUMENTS]
    features = [
        {"input_ids": row, "token_type_ids": [0] * len(row), "next_sentence_label": IGNORED}
        for row in ids
    ]
    torch.manual_seed(0)
    batch = _Masking(tokenizer)(features)
    chosen = batch["labels"] != IGNORED
    original = torch.where(chosen, batch["labels"], batch["input_ids"])
    for row, expected in zip(original.tolist(), ids, strict=True):
        assert row[: len(expected)] == expected
    assert (chosen.sum(dim=1) >= 1).all()
    special = torch.isin(original, torch.tensor(tokenizer.all_special_ids))
    assert not (chosen & special).any()
    share = chosen.sum() / (~special).sum()
    assert 0.13 < float(share) < 0.2
    masked = (batch["input_ids"] == tokenizer.mask_token_id)[chosen].float().mean()
    assert 0.7 < float(masked) < 0.9


def test_without_a_padding_token_padding_is_never_masked() -> None:
    tokenizer = train_word_pieces(DOCUMENTS, 320, 48)
    tokenizer.pad_token = None
    features = [
        {
            "input_ids": [tokenizer.cls_token_id, *[9] * length],
            "token_type_ids": [0] * (length + 1),
            "next_sentence_label": IGNORED,
        }
        for length in (1, 40)
    ]
    batch = _Masking(tokenizer)(features)
    chosen = batch["labels"] != IGNORED
    assert chosen.any()
    assert not chosen[batch["attention_mask"] == 0].any()


def test_masking_without_a_mask_token_is_refused() -> None:
    tokenizer = train_word_pieces(DOCUMENTS, 320, 48)
    tokenizer.mask_token = None
    with pytest.raises(RecipeError, match=r"tokenizer has none \(mask_token\)"):
        _Masking(tokenizer)


def test_second_sentences_follow_or_come_from_elsewhere() -> None:
    documents = [
        f"First of {number}. Second of {number}. Third of {number}." for number in range(200)
    ]
    pairs = _sentence_pairs([*documents, "Alone."], seed=1)
    assert ("Alone.", None, IGNORED) in pairs
    asked = [pair for pair in pairs if pair[1] is not None]
    assert len(asked) == 400
    following = {"First": "Second", "Second": "Third"}
    for first, second, strange in asked:
        word, _, number = str(first).rstrip(".").split()
        follows = second == f"{following[word]} of {number}."
        assert follows == (strange == 0)
    assert 150 < sum(strange for _, _, strange in asked) < 250


def test_next_sentences_need_sentences() -> None:
    with pytest.raises(RecipeError, match="documents of two sentences"):
        _demand_sentences(["one", "two"])
    _demand_sentences(["one", "two. And three."])


def test_documents_of_one_family_and_equal_ones_belong_together() -> None:
    rows = Dataset.from_dict({"text": ["a", "b", "A", "c"], "reply": ["x", "y", "z", "y"]})
    rows = rows.add_column(FAMILY, [0, 1, 0, 3])
    documents = Documents.of(rows, ["{text}", "Reply: {reply}"])
    assert documents.texts[:3] == ["a", "Reply: x", "b"]
    assert documents.families == [0, 1, 2, 3, 0, 1, 6, 3]


def test_held_out_documents_share_no_text_with_those_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each document occurs four times, and the second sentence of a pair may come from another document."""
    read: dict[str, set[str]] = {}

    def fit(model: Any, features: FitRows, *rest: Any) -> None:
        assert features.held_out is not None
        read.update(train=_numbers(features.train), judge=_numbers(features.held_out))

    def held_out_losses(model: Any, train: Dataset, judge: Dataset, *rest: Any) -> Pretrained:
        read.update(unseen=_numbers(judge))
        return Pretrained(1.0, 2.0)

    def _numbers(features: Dataset) -> set[str]:
        return set(re.findall(r"\d{3}", " ".join(map(tokenizer.decode, features["input_ids"]))))

    monkeypatch.setattr(pretraining, "fit", fit)
    monkeypatch.setattr(pretraining, "held_out_losses", held_out_losses)
    texts = [f"this is number {n}. that was number {n}." for n in range(100, 160)] * 4
    documents = Documents.of(Dataset.from_dict({"text": texts}), ["{text}"])
    tokenizer = train_word_pieces(texts, 400, 48)
    model = BertForPreTraining(
        BertConfig(
            vocab_size=400, hidden_size=16, intermediate_size=16,
            num_hidden_layers=1, num_attention_heads=1, max_position_embeddings=48,
        )
    )  # fmt: skip
    options = FitOptions(1, 8, 0.1, seed=1, patience=1)
    with ProgressTable() as progress_table:
        stage = Stage("base", tmp_path, "float32", progress_table)
        pretraining.pretrain(model, tokenizer, documents, "masked_next_sentence", options, stage)
    assert all(read.values())
    assert sum(map(len, read.values())) == len(set.union(*read.values())) == 60


@pytest.mark.parametrize("kind", ["bytes", "word pieces"])
def test_the_same_texts_give_the_same_tokenizer(kind: str) -> None:
    """Otherwise, a run that is resumed in its first stage would continue with other token ids."""
    from training.stages.scratch import train_tokenizer, train_word_pieces

    train = train_tokenizer if kind == "bytes" else train_word_pieces
    first, *others = (train(DOCUMENTS, 320, 48).backend_tokenizer.to_str() for _ in range(4))
    assert others == [first] * 3


def test_what_looks_like_a_piece_in_a_text_is_read_as_text() -> None:
    tokenizer = train_word_pieces(DOCUMENTS, 320, 48)
    assert "##" not in tokenizer.tokenize("##a")[0]
    assert set(tokenizer.all_special_tokens) == {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"}

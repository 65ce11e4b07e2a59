"""Whole runs of multilabel and of regression over pairs, against the offline reference."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from scipy.stats import spearmanr
from sklearn.metrics import f1_score
from transformers import AutoModel, AutoTokenizer

from serve.bundle import Bundle
from serve.fusion.fitting.fit import refit_fusion
from serve.fusion.fuse import Fusion
from serve.manifest import Ensemble
from tests.training.conftest import TOPICS
from training.evaluation.evaluation import evaluate_bundle
from training.offline.members import OfflineMembers
from training.pipeline import train
from training.recipe import RecipeError

WORDS = {"card": "card", "transfer": "transfer", "money": "money"}
"""A row has the labels of those of these words that are in its text."""
WORDS_SORTED = sorted(WORDS.items())
DEFAULTS = {"epochs": 6, "batch_size": 16, "rank": 4, "learning_rate": 0.02}


def tagged(count: int) -> list[dict[str, Any]]:
    asks = [ask for topic in TOPICS.values() for ask in topic]
    texts = [f"{asks[number % len(asks)]} number {number}" for number in range(count)]
    return [
        {"text": text, "tags": [label for label, word in WORDS.items() if word in text]}
        for text in texts
    ]


def paired(count: int) -> list[str]:
    """Two texts and how many words they share."""
    asks = [ask for topic in TOPICS.values() for ask in topic]
    lines = ["first,second,score"]
    for number in range(count):
        one, two = asks[number % len(asks)], asks[(number * 7 + number // 9) % len(asks)]
        shared = len(set(one.split()) & set(two.split()))
        lines.append(f"{one},{two},{5 * shared / len(set(one.split()) | set(two.split())):.2f}")
    return lines


@pytest.fixture(scope="session")
def tags_bundle(
    tmp_path_factory: pytest.TempPathFactory, write_recipe: Callable[..., Path], encoder_base: Path
) -> Bundle:
    folder = tmp_path_factory.mktemp("tags")
    for name, count in (("train", 90), ("test", 45)):
        rows = "\n".join(map(json.dumps, tagged(count)))
        (folder / f"{name}.jsonl").write_text(rows + "\n")
    ensemble = {
        "name": "tags",
        "task": "multilabel",
        "label": "tags",
        "defaults": DEFAULTS,
        "members": [{"name": "a", "seed": 1}, {"name": "b", "seed": 2, "normalize": False}],
        "fusion": {"criterion": "micro_f1", "stack": "gradient_boosting"},
        "golden": 4,
    }
    recipe = write_recipe(
        folder,
        base={"kind": "encoder", "path": str(encoder_base)},
        data={"train": "train.jsonl", "test": "test.jsonl", "validation_fraction": 0.3},
        ensembles=[ensemble],
    )
    return train(recipe, folder / "bundle")


@pytest.fixture(scope="session")
def pairs_bundle(
    tmp_path_factory: pytest.TempPathFactory, write_recipe: Callable[..., Path], encoder_base: Path
) -> Bundle:
    folder = tmp_path_factory.mktemp("pairs")
    (folder / "pairs.csv").write_text("\n".join(paired(120)) + "\n")
    ensemble = {
        "name": "overlap",
        "task": "regression",
        "target": "score",
        "defaults": DEFAULTS,
        "members": [
            {"name": "a", "seed": 1},
            {"name": "b", "seed": 2, "head": "random", "loss": "huber"},
        ],
        "fusion": {"method": "stack"},
        "golden": 4,
    }
    data = {
        "train": "pairs.csv",
        "test": "pairs.csv",
        "validation_fraction": 0.3,
        "text": "first",
        "text_pair": "second",
    }
    base = {"kind": "encoder", "path": str(encoder_base)}
    return train(
        write_recipe(folder, base=base, data=data, ensembles=[ensemble]), folder / "bundle"
    )


def test_bundles_are_sound_and_say_what_was_fitted(
    tags_bundle: Bundle, pairs_bundle: Bundle
) -> None:
    assert tags_bundle.verify() == []
    assert pairs_bundle.verify() == []
    tags = tags_bundle.ensemble("tags")
    assert tags.labels == ["card", "money", "transfer"]
    assert set(tags.thresholds) == set(tags.labels)
    assert tags.fusion.model == "gradient_boosting"
    assert tags_bundle.fusion_path(tags).name == "stack.txt"
    overlap = pairs_bundle.ensemble("overlap")
    assert (overlap.fusion.method, overlap.fusion.model) == ("stack", "linear_regression")
    assert overlap.labels is None


def test_stored_scores_give_the_same_fusion_again(
    tags_bundle: Bundle, pairs_bundle: Bundle
) -> None:
    for bundle, name in ((tags_bundle, "tags"), (pairs_bundle, "overlap")):
        ensemble = bundle.ensemble(name)
        stored = bundle.validation_scores(name)
        rows = stored.rows()
        assert rows is not None
        said = np.stack([stored.outputs(each, rows.header.rows) for each in ensemble.members])
        again = refit_fusion(ensemble, rows.header.options, said, rows.truth, rows.folds)
        assert again.ensemble == ensemble
        assert again.parameters.content() == bundle.fusion_path(ensemble).read_text()


def test_golden_inputs_are_answered_by_the_fusion_as_they_say(
    tags_bundle: Bundle, pairs_bundle: Bundle
) -> None:
    tags = tags_bundle.ensemble("tags")
    assert len(tags.golden) == 4
    texts = [str(golden.input) for golden in tags.golden]
    fused = Fusion.from_manifest(tags, tags_bundle.fusion_path(tags))
    chosen = fused(OfflineMembers(tags_bundle, tags).outputs(texts)).chosen
    for golden, text, row in zip(tags.golden, texts, chosen, strict=True):
        assert golden.labels == [label for label, word in WORDS_SORTED if word in text]
        assert golden.labels == [tags.labels[place] for place in np.flatnonzero(row)]

    overlap = pairs_bundle.ensemble("overlap")
    assert len(overlap.golden) == 4
    known = {tuple(line.split(",")[:2]): float(line.split(",")[2]) for line in paired(120)[1:]}
    pairs = [(golden.input["text"], golden.input["text_pair"]) for golden in overlap.golden]
    fused = Fusion.from_manifest(overlap, pairs_bundle.fusion_path(overlap))
    firsts, seconds = zip(*pairs, strict=True)
    values = fused(OfflineMembers(pairs_bundle, overlap).outputs(firsts, seconds)).values
    rmse = overlap.scores["validation"]["rmse"]
    for golden, pair, value in zip(overlap.golden, pairs, values, strict=True):
        assert golden.value == known[pair]
        assert abs(value - golden.value) < golden.tolerance
        assert golden.tolerance == pytest.approx(2 * rmse, rel=0.5)


def test_members_learn_what_words_say(tags_bundle: Bundle) -> None:
    report = tags_bundle.ensemble("tags").scores["validation"]
    assert report["micro_f1"] > 0.9
    assert {"exact_match", "macro_f1", "log_loss"} <= report.keys()


def heads(bundle: Bundle, ensemble: Ensemble) -> list[tuple[Any, dict[str, torch.Tensor]]]:
    """Each member's model by PEFT alone, and its head."""
    found = []
    for member in ensemble.members:
        folder = bundle.adapter_dir(member.adapters[0])
        base = AutoModel.from_pretrained(bundle.base_source, dtype=torch.float32)
        head = load_file(folder / "head.safetensors")
        found.append((PeftModel.from_pretrained(base, folder).eval(), head))
    return found


def pooled(model: Any, tokenizer: Any, text: str, normalize: bool) -> torch.Tensor:
    with torch.inference_mode():
        states = model(**tokenizer(text, return_tensors="pt")).last_hidden_state
    vector = states[0].mean(dim=0)
    return vector / vector.norm() if normalize else vector


def test_sets_are_what_peft_and_a_sigmoid_say(tags_bundle: Bundle) -> None:
    ensemble = tags_bundle.ensemble("tags")
    texts = [row["text"] for row in tagged(5)]
    tokenizer = AutoTokenizer.from_pretrained(tags_bundle.base_source)
    expected = [
        [
            (head["weight"] @ pooled(model, tokenizer, text, normalize) + head["bias"]).sigmoid()
            for text in texts
        ]
        for (model, head), normalize in zip(
            heads(tags_bundle, ensemble), (True, False), strict=True
        )
    ]
    found = OfflineMembers(tags_bundle, ensemble).outputs(texts)
    np.testing.assert_allclose(
        found, np.array([[p.numpy() for p in m] for m in expected]), atol=1e-5
    )


def test_values_of_pairs_are_what_peft_and_two_towers_say(pairs_bundle: Bundle) -> None:
    ensemble = pairs_bundle.ensemble("overlap")
    pairs = [tuple(line.split(",")[:2]) for line in paired(6)[1:]]
    tokenizer = AutoTokenizer.from_pretrained(pairs_bundle.base_source)
    expected = []
    for model, head in heads(pairs_bundle, ensemble):
        for one, two in pairs:
            u, v = (pooled(model, tokenizer, text, True) for text in (one, two))
            read = torch.cat([u, v, (u - v).abs(), u * v])
            expected.append(float(head["weight"][0] @ read + head["bias"][0]))
    firsts, seconds = zip(*pairs, strict=True)
    found = OfflineMembers(pairs_bundle, ensemble).outputs(firsts, seconds)
    np.testing.assert_allclose(found, np.reshape(expected, (2, 6)), atol=1e-5)


def test_the_report_judges_what_the_fusion_answers(
    tags_bundle: Bundle, pairs_bundle: Bundle, tmp_path: Path
) -> None:
    """Figures in the report, recomputed by scikit-learn and scipy from members and fusion alone."""
    rows = tagged(45)
    tags = tags_bundle.ensemble("tags")
    members = OfflineMembers(tags_bundle, tags).outputs([row["text"] for row in rows])
    fused = Fusion.from_manifest(tags, tags_bundle.fusion_path(tags))(members)
    truth = np.array([[label in row["tags"] for label in tags.labels] for row in rows])
    evaluate_bundle(tags_bundle.path, "tags", None, tmp_path / "tags.json")
    served = next(
        row for row in json.loads((tmp_path / "tags.json").read_text())["rows"] if row["served"]
    )
    expected = f1_score(truth, fused.chosen, average="micro")
    assert served["scores"]["micro_f1"] == pytest.approx(expected)

    lines = [line.split(",") for line in paired(120)[1:]]
    overlap = pairs_bundle.ensemble("overlap")
    values = OfflineMembers(pairs_bundle, overlap).outputs(
        [one for one, _, _ in lines], [two for _, two, _ in lines]
    )
    fused = Fusion.from_manifest(overlap, pairs_bundle.fusion_path(overlap))(values)
    evaluate_bundle(pairs_bundle.path, "overlap", None, tmp_path / "pairs.json")
    report = json.loads((tmp_path / "pairs.json").read_text())
    served = next(row for row in report["rows"] if row["served"])
    correlation = spearmanr(fused.values, [float(score) for _, _, score in lines]).statistic
    assert served["scores"]["spearman"] == pytest.approx(correlation)
    assert served["scores"]["spearman"] > 0.5
    assert {"rmse", "mae", "pearson", "r2"} <= served["scores"].keys()


def test_a_bundle_without_its_recipe_is_judged_by_named_columns(
    pairs_bundle: Bundle, tags_bundle: Bundle, tmp_path: Path
) -> None:
    for bundle, name in ((pairs_bundle, "overlap"), (tags_bundle, "tags")):
        copy = Bundle.create(
            tmp_path / name, bundle.info.base.model_copy(update={"path": bundle.base_source})
        )
        for part in ("adapters", "ensembles", "fusion"):
            shutil.copytree(bundle.path / part, copy.path / part, dirs_exist_ok=True)
    file = tmp_path / "rows.jsonl"
    file.write_text('{"text": "my card", "text_pair": "the card", "value": 2.5}\n' * 3)
    evaluate_bundle(tmp_path / "overlap", "overlap", file, tmp_path / "out.json")
    assert json.loads((tmp_path / "out.json").read_text())["count"] == 3
    file.write_text('{"text": "my card", "labels": ["card"]}\n{"text": "hello", "labels": []}\n')
    evaluate_bundle(tmp_path / "tags", "tags", file, tmp_path / "out.json")
    assert json.loads((tmp_path / "out.json").read_text())["count"] == 2


@pytest.mark.parametrize(
    ("ensemble", "data", "reason"),
    [
        ({"task": "regression", "label": "x"}, {}, "names its `target` column, and no `label`"),
        ({"task": "multilabel", "target": "x"}, {}, "names its `label` column, and no `target`"),
        (
            {"task": "regression", "target": "x", "fusion": {"method": "vote"}},
            {},
            "regression is fused by average, weighted_average, stack, not by vote",
        ),
        (
            {"task": "regression", "target": "x", "fusion": {"criterion": "accuracy"}},
            {},
            "the criterion of regression is squared_error, not accuracy",
        ),
        (
            {"task": "multilabel", "label": "x", "fusion": {"stack": "linear_regression"}},
            {},
            "multilabel is stacked by logistic_regression or gradient_boosting",
        ),
        ({"task": "regression", "target": "x", "labels": ["a"]}, {}, "`labels` is for"),
        ({"task": "regression", "target": "text"}, {}, "train rows: row 1 holds 'the transfer"),
        ({"task": "multilabel", "label": "label", "labels": ["card"]}, {}, "the label 'top_up' of"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_trained(
    tmp_path: Path,
    write_recipe: Callable[..., Path],
    encoder_base: Path,
    ensemble: dict[str, Any],
    data: dict[str, Any],
    reason: str,
) -> None:
    recipe = write_recipe(
        tmp_path,
        base={"kind": "encoder", "path": str(encoder_base)},
        ensembles=[{"name": "x", "members": [{"name": "a"}], **ensemble}],
    )
    with pytest.raises(RecipeError, match=reason):
        train(recipe, tmp_path / "bundle")


def test_heads_need_an_encoder(tmp_path: Path, write_recipe: Callable[..., Path]) -> None:
    ensemble = {"name": "x", "task": "regression", "target": "x", "members": [{"name": "a"}]}
    with pytest.raises(RecipeError, match="multilabel and regression need heads"):
        train(write_recipe(tmp_path, ensembles=[ensemble]), tmp_path / "bundle")
    data = {"train": "train.csv", "text_pair": "reply"}
    with pytest.raises(RecipeError, match="text_pair needs heads"):
        train(write_recipe(tmp_path, data=data), tmp_path / "bundle")

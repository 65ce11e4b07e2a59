"""Comparison of bases: the one whose vectors separate the labels is recommended."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer, BertConfig, BertModel
from typer.testing import CliRunner

from choir_cli.main import app
from serve.bundle import Bundle
from tests.training.conftest import TOPICS
from training.evaluation.bases import Choice, compare_bases
from training.evaluation.probe_rows import rows_of_file, rows_of_recipe
from training.recipe import RecipeError


def write_topics(file: Path) -> Path:
    """45 rows: words of a topic in random order."""
    rng = random.Random(0)
    lines = ["text,label"]
    for number in range(45):
        label = list(TOPICS)[number % 3]
        words = " ".join(TOPICS[label]).split()
        lines.append(f"{' '.join(rng.sample(words, 5))},{label}")
    file.write_text("\n".join(lines))
    return file


@pytest.fixture(scope="module")
def blind_base(tmp_path_factory: pytest.TempPathFactory, encoder_base: Path) -> Path:
    """A larger encoder that gives all words the same vector."""
    folder = tmp_path_factory.mktemp("blind")
    config = BertConfig.from_pretrained(encoder_base)
    config.num_hidden_layers = 3
    model = BertModel(config)
    with torch.no_grad():
        model.embeddings.word_embeddings.weight.fill_(0.1)
        model.embeddings.position_embeddings.weight.fill_(0.1)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(encoder_base).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def choice(
    tmp_path_factory: pytest.TempPathFactory,
    encoder_base: Path,
    blind_base: Path,
    causal_bundle: Bundle,
) -> Choice:
    data = write_topics(tmp_path_factory.mktemp("rows") / "rows.csv")
    candidates = [str(blind_base), str(encoder_base), causal_bundle.base_source]
    return compare_bases(
        candidates, rows_of_file(data, "text", "label", "User: {text}\nTopic:"), rows=45
    )


def test_a_base_that_tells_the_labels_apart_is_recommended(
    choice: Choice, encoder_base: Path, blind_base: Path
) -> None:
    trials = {trial.name: trial for trial in choice.trials}
    assert choice.recommended != str(blind_base)
    assert trials[str(encoder_base)].probe > 0.8
    assert trials[str(blind_base)].probe < 0.5
    assert (choice.rows, choice.labels) == (45, 3)
    assert choice.majority == pytest.approx(1 / 3)


def test_sizes_are_counted_and_kinds_are_found(
    choice: Choice, encoder_base: Path, causal_bundle: Bundle
) -> None:
    encoder, causal = choice.trials[1:]
    assert (encoder.kind, causal.kind) == ("encoder", "causal")
    for trial, source in ((encoder, encoder_base), (causal, causal_bundle.base_source)):
        model = AutoModel.from_pretrained(source)
        assert trial.parameters == sum(p.numel() for p in model.parameters())
        assert trial.tokens_per_second > 0
        low, high = trial.probe_interval
        assert low <= trial.probe <= high


def test_zero_shot_of_a_causal_base_is_the_likeliest_label(
    choice: Choice, causal_bundle: Bundle, tmp_path: Path
) -> None:
    """The reference is transformers alone: the mean log-probability of the label's tokens after the prompt."""
    rows = [line.split(",") for line in write_topics(tmp_path / "rows.csv").read_text().split("\n")]
    model = AutoModelForCausalLM.from_pretrained(
        causal_bundle.base_source, dtype=torch.float32
    ).eval()
    tokenizer = AutoTokenizer.from_pretrained(causal_bundle.base_source)
    right = []
    for text, label in rows[1:]:
        prompt = tokenizer(f"User: {text}\nTopic:")["input_ids"]
        scores = {}
        for name in sorted(TOPICS):
            ids = tokenizer(f"User: {text}\nTopic: {name.replace('_', ' ')}")["input_ids"]
            assert ids[: len(prompt)] == prompt
            with torch.inference_mode():
                logs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
            tokens = range(len(prompt), len(ids))
            scores[name] = np.mean([float(logs[n - 1, ids[n]]) for n in tokens])
        right.append(max(scores, key=lambda name: scores[name]) == label)
    assert choice.trials[2].zero_shot == pytest.approx(np.mean(right), abs=1e-9)


def test_the_smaller_of_two_equals_is_recommended(encoder_base: Path, tmp_path: Path) -> None:
    """The same function with idle units: more parameters, and the same vectors."""
    larger = tmp_path / "larger"
    small = BertModel.from_pretrained(encoder_base)
    big = BertModel(BertConfig.from_pretrained(encoder_base, intermediate_size=128))
    with torch.no_grad():
        for name, weight in big.named_parameters():
            weight.zero_()
            given = small.get_parameter(name)
            weight[tuple(slice(size) for size in given.shape)] = given
    big.save_pretrained(larger)
    AutoTokenizer.from_pretrained(encoder_base).save_pretrained(larger)
    data = write_topics(tmp_path / "rows.csv")
    choice = compare_bases(
        [str(larger), str(encoder_base)], rows_of_file(data, "text", "label", "{text}")
    )
    assert choice.trials[0].probe == choice.trials[1].probe
    assert choice.recommended == str(encoder_base)


def test_the_command_prints_a_table_or_json(encoder_base: Path, tmp_path: Path) -> None:
    data = write_topics(tmp_path / "rows.csv")
    with data.open("a") as stream:
        stream.write("\nodd,rare")
    asked = ["bases", "--data", str(data), str(encoder_base)]
    shown = CliRunner().invoke(app, asked)
    assert shown.exit_code == 0, shown.output
    assert "linear probe" in shown.output
    assert "1 row left out: too few texts of its label" in shown.output
    assert "the best probe" in shown.output
    found = json.loads(CliRunner().invoke(app, [*asked, "--json"]).stdout)
    assert found["recommended"] == str(encoder_base)


@pytest.mark.parametrize(
    ("candidates", "content", "message"),
    [
        (["nowhere"], None, "There is no folder nowhere. A candidate is a model folder, gt-all"),
        (["org/model@abc"], None, "cannot get org/model@abc from the hub or its local cache"),
        (["{folder}"], None, "no readable config.json"),
        (["{encoder}", "{encoder}"], None, "a candidate is named twice"),
        (["{encoder}"], "text,intent\na,b\n", "no column 'label'"),
        (["{encoder}"], "text,label\na,b\n", "at least two labels of at least 5 texts"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    candidates: list[str],
    content: str | None,
    message: str,
    encoder_base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    data = write_topics(tmp_path / "rows.csv")
    if content:
        data.write_text(content)
    names = [name.format(folder=tmp_path, encoder=encoder_base) for name in candidates]
    with pytest.raises(RecipeError, match=message):
        compare_bases(names, rows_of_file(data, "text", "label", "{text}"))


def test_the_probe_is_that_of_scikit_learn_on_mean_pooled_vectors(
    choice: Choice, encoder_base: Path, tmp_path: Path
) -> None:
    """The reference is a probe fitted by hand, on vectors that are computed one text at a time."""
    rows = [line.split(",") for line in write_topics(tmp_path / "rows.csv").read_text().split("\n")]
    model = AutoModel.from_pretrained(encoder_base).eval()
    tokenizer = AutoTokenizer.from_pretrained(encoder_base)
    vectors = []
    for text, _ in rows[1:]:
        with torch.inference_mode():
            states = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        vectors.append(torch.nn.functional.normalize(states.mean(0), dim=0).numpy())
    labels = [label for _, label in rows[1:]]
    right = []
    for row in range(len(labels)):
        rest = [n for n in range(len(labels)) if n != row]
        x, y = np.array(vectors), np.array(labels)
        mean, spread = x[rest].mean(0), x[rest].std(0)
        probe = LogisticRegression(C=0.1, max_iter=500).fit((x[rest] - mean) / spread, y[rest])
        right.append(probe.predict((x[[row]] - mean) / spread)[0] == labels[row])
    assert choice.trials[1].probe == pytest.approx(np.mean(right), abs=0.12)


RECIPE = """
name: topics
base: {{kind: encoder, path: {base}}}
data:
  train: [{{path: rows.csv, delimiter: ";", columns: {{text: message, label: topic}}}}]
  validation_fraction: 0.2
  split: {{test_fraction: 0.2}}
ensembles:
  - {{name: topics, task: classification, label: label, members: [{{name: a, seed: 1}}]}}
"""


def test_the_rows_of_a_recipe_are_those_that_prepare_makes(
    encoder_base: Path, tmp_path: Path
) -> None:
    """Another delimiter, other names of columns, and a test split that is not looked at."""
    data = write_topics(tmp_path / "rows.csv")
    lines = data.read_text().replace(",", ";").split("\n")
    data.write_text("\n".join(["message;topic", *lines[1:]]))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE.format(base=encoder_base))
    found = rows_of_recipe(recipe, None)

    done = CliRunner().invoke(
        app, ["prepare", str(recipe), "--out", str(tmp_path / "prepared")], catch_exceptions=False
    )
    assert done.exit_code == 0
    made = {
        split: [
            (row["text"], row["label"])
            for row in map(
                json.loads, (tmp_path / "prepared" / f"{split}.jsonl").read_text().splitlines()
            )
        ]
        for split in ("train", "validation", "test")
    }
    rows = list(zip(found.texts, found.labels, strict=True))
    assert rows == made["train"] + made["validation"]
    assert made["test"]
    assert not set(rows) & set(made["test"])


def test_the_command_compares_bases_on_a_recipes_rows(encoder_base: Path, tmp_path: Path) -> None:
    data = write_topics(tmp_path / "rows.csv")
    data.write_text(data.read_text().replace(",", ";").replace("text;label", "message;topic"))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE.format(base=encoder_base))
    done = CliRunner().invoke(app, ["bases", "--recipe", str(recipe), str(encoder_base)])

    assert done.exit_code == 0, done.output
    assert "1 base on " in done.output
    assert "rows of 3 labels" in done.output
    assert f"* Take {encoder_base}: the best probe." in done.output


def test_an_ensemble_that_the_recipe_lacks_is_refused(encoder_base: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE.format(base=encoder_base))
    with pytest.raises(RecipeError, match=r"name it with --ensemble \(the recipe has: topics\)"):
        rows_of_recipe(recipe, "topic")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "either --data FILE or --recipe RECIPE"),
        (["--data", "a.csv", "--recipe", "b.yaml"], "either --data FILE or --recipe RECIPE"),
        (["--recipe", "b.yaml", "--label", "x"], "--text, --label and --template need --data"),
        (["--data", "a.csv", "--ensemble", "x"], "--ensemble needs --recipe"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options: list[str], message: str) -> None:
    done = CliRunner().invoke(app, ["bases", "base", *options])
    assert message in str(done.exception)

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from serve.manifest import Name
from tests.training.conftest import recipe_content
from training.recipe import (
    LoraStage,
    PrefixStage,
    PromptStage,
    RecipeError,
    load_recipe,
    parse_recipe,
)

RECIPES = sorted((Path(__file__).parents[2] / "training").glob("*/*.yaml"))


def changed(path: str, value: Any) -> dict[str, Any]:
    content = recipe_content()
    place: Any = content
    *parents, last = path.split(".")
    for key in parents:
        place = place[int(key)] if key.isdigit() else place[key]
    place[int(last) if last.isdigit() else last] = value
    return content


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (
            "ensembles.0.members.0.rankk",
            3,
            "ensembles.0.members.0.rankk: unknown key, did you mean rank?",
        ),
        (
            "ensembles.0.members.0.search",
            {"space": {"learning_rate": {"log": [0, 1]}}},
            "search.space.learning_rate: a log range starts over 0, not at 0",
        ),
        (
            "ensembles.0.members.0.search",
            {"space": {"rank": [4, 9000]}},
            "search: rank 9000 cannot be tried: rank Input should be less than or equal to 512",
        ),
        (
            "ensembles.0.members.0.search",
            {"space": {"rank": {"uniform": [4, 8]}}},
            "search: rank 5.5276 cannot be tried: rank Input should be a valid integer",
        ),
        (
            "ensembles.0.members.0.search",
            {"space": {"virtual_tokens": [4, 8]}},
            "search: virtual_tokens is no key of the kind lora, which has alpha, batch_size",
        ),
        (
            "ensembles.0.members.0.search",
            {"space": {"rank": {"log": [1, 2], "uniform": [1, 2]}}},
            "exactly one of log, uniform and integer (given: log, uniform)",
        ),
        (
            "ensembles.0.members.0.search",
            {"space": {"rank": [4, 8]}, "metric": "bleu"},
            "search: trials of classification are judged by log_loss, accuracy, macro_f1, ece, not by bleu",
        ),
        (
            "ensembles.0.members.0.search",
            {"space": {"rank": [4, 8]}, "trails": 3},
            "search.trails: unknown key, did you mean trials?",
        ),
        (
            "ensembles.0.members.0.rank",
            "many",
            "ensembles.0.members.0.rank: .*integer.* (got 'many')",
        ),
        (
            "ensembles.0.members.0.kind",
            "prefix_tuning",
            "ensembles.0.members.0: kind must be one of lora, prefix, prompt, p_tuning",
        ),
        (
            "ensembles.0.members.0",
            {
                "name": "a",
                "search": {"space": {"rank": [4, 8]}},
                "stages": [{"kind": "lora"}, {"kind": "prompt"}],
            },
            "search is for members of one stage",
        ),
        (
            "ensembles.0.members.0",
            {"name": "a", "kind": "prefix", "rank": 8},
            "ensembles.0.members.0.rank: this key is for the kind lora, not for prefix",
        ),
        (
            "ensembles.0.members.0",
            {"name": "a", "kind": "prefix", "projection": 8, "init": "x"},
            "init and projection exclude each other",
        ),
        (
            "ensembles.0.members.0",
            {"name": "a", "stages": [{"kind": "prompt"}, {"kind": "lora"}]},
            "the stages prompt, lora cannot be one member",
        ),
        (
            "ensembles.0.members.0",
            {"name": "a", "stages": [{"rank": 4, "virtual_tokens": 4}]},
            "ensembles.0.members.0.stages.0.virtual_tokens: this key is for the kind prefix",
        ),
        (
            "ensembles.0.members.0",
            {"name": "a", "rank": 4, "stages": [{"kind": "lora"}]},
            "rank belongs into one of the stages",
        ),
        (
            "ensembles.0.defaults.rankk",
            3,
            "defaults has the unknown key 'rankk', did you mean rank?",
        ),
        ("ensembles.0.label", None, "classification ensemble names its `label`"),
        ("ensembles.0.template", "no place", "template must contain {text}"),
        ("ensembles.0.members", [], "ensembles.0.members: .*at least 1"),
        ("ensembles.0.members", [{"name": "a"}, {"name": "a"}], "members need different names"),
        ("ensembles.0.candidates", [{"name": "x", "member": "z"}], "unknown member 'z'"),
        (
            "ensembles.0.members.1.name",
            "a" * 57,
            f"its adapter would be called topics-{'a' * 57}, which has 64 characters",
        ),
        (
            "ensembles.0.members.1",
            {"name": "a" * 50, "stages": [{"kind": "lora"}, {"kind": "prompt"}]},
            f"topics-{'a' * 50}-prompt, which has 64 characters",
        ),
        ("ensembles.0.task", "ranking", "ensembles.0.task: .*'classification', .* or 'generation'"),
        (
            "ensembles.1.fusion",
            {"method": "stack"},
            "generation is fused by average, product, vote, not by stack",
        ),
        (
            "base.path",
            "model",
            "exactly one of path, id, package and scratch (given: path, scratch)",
        ),
        ("base.scratch.heads", 3, "hidden / heads must be one of"),
        ("base.scratch.documents", ["nothing"], "must name columns in braces"),
        ("base", {"kind": "causal", "id": "org/model"}, "id and revision belong together"),
        ("base", {"kind": "encoder", "path": "x"}, "generation needs a causal base"),
        ("data.example", {}, "give either train"),
        ("data.train", {"pth": "a.csv"}, "data.train.pth: unknown key, did you mean path?"),
        ("data.train", [{"path": "a.csv", "url": "s3://b/c"}], "exactly one of path, url, hub and"),
        ("data.train", {"hub": "org/rows"}, "a data set without a revision is not reproducible"),
        ("data.clean", {"duplicate": "near"}, "unknown key, did you mean duplicates?"),
        ("data.clean", {"duplicates": "all"}, "data.clean.duplicates: .*'exact', 'near' or 'keep'"),
        ("data.split", {"by": "group"}, "column goes with `by: group`"),
        ("data.split", {"test_fraction": 0.1}, "give either test (files) or split.test_fraction"),
        (
            "data.annotate",
            {"label": "label", "unlabelled": "x.csv", "rules": [{"label": "a", "pattern": "("}]},
            "the pattern '(' is no regular expression",
        ),
        ("data.annotate", {"label": "label"}, "give unlabelled rows and who labels them"),
        (
            "data.train",
            "${CHOIR_NO_SUCH}/a.csv",
            "the environment variable CHOIR_NO_SUCH is not set",
        ),
    ],
)
def test_a_wrong_key_is_named_with_what_was_expected(
    path: str, value: Any, message: str, tmp_path: Path
) -> None:
    pattern = ".*".join(re.escape(part) for part in message.split(".*"))
    with pytest.raises(RecipeError, match=pattern):
        parse_recipe(changed(path, value), folder=tmp_path)


def test_the_longest_name_of_an_adapter_is_one_that_the_bundle_takes(tmp_path: Path) -> None:
    recipe = parse_recipe(changed("ensembles.0.members.1.name", "a" * 56), folder=tmp_path)
    [name] = recipe.ensembles[0].members[1].adapter_names("topics")
    assert TypeAdapter(Name).validate_python(name) == f"topics-{'a' * 56}"
    with pytest.raises(ValidationError):
        TypeAdapter(Name).validate_python(f"{name}a")


def test_candidates_that_would_lie_in_one_folder_are_refused(tmp_path: Path) -> None:
    common = {"task": "classification", "label": "label"}
    ensembles = [
        common | {"name": name, "members": [{"name": "m"}], "candidates": [candidate]}
        for name, candidate in (
            ("intents", {"name": "fr-a", "member": "m"}),
            ("intents-fr", {"name": "a", "member": "m"}),
        )
    ]
    said = r"intents/fr-a and intents-fr/a would lie in one folder, candidates/intents-fr-a"
    with pytest.raises(RecipeError, match=said):
        parse_recipe(recipe_content(ensembles=ensembles), folder=tmp_path)


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    content = recipe_content()
    del content["ensembles"][0]["members"][0]["name"]
    with pytest.raises(RecipeError, match=r"ensembles.0.members.0.name: this key is required"):
        parse_recipe(content, folder=tmp_path)


def test_a_members_own_keys_win_over_the_defaults(tmp_path: Path) -> None:
    content = recipe_content()
    content["ensembles"][0]["members"][0]["rank"] = 32
    members = parse_recipe(content, folder=tmp_path).ensembles[0].members
    assert [member.stages[0].rank for member in members] == [32, 4]


def test_defaults_reach_the_kinds_and_stages_that_have_them(tmp_path: Path) -> None:
    content = recipe_content()
    ensemble = content["ensembles"][0]
    ensemble["defaults"] = {"rank": 4, "epochs": 2, "virtual_tokens": 8, "bag": 0.5}
    ensemble["members"] = [
        {"name": "a", "kind": "prefix"},
        {"name": "b", "stages": [{"rank": 8}, {"kind": "prompt", "epochs": 3}]},
    ]
    prefix, both = parse_recipe(content, folder=tmp_path).ensembles[0].members
    assert (prefix.bag, both.bag) == (0.5, 0.5)
    assert prefix.stages == [PrefixStage(epochs=2, virtual_tokens=8)]
    assert both.stages == [LoraStage(rank=8, epochs=2), PromptStage(epochs=3, virtual_tokens=8)]


def distilled(teacher: dict[str, str], before: dict[str, Any] | None = None) -> dict[str, Any]:
    stages = [before or {"kind": "lora"}, {"kind": "distillation", "teacher": teacher}]
    return {"name": "a", "stages": stages}


@pytest.mark.parametrize(
    ("member", "message"),
    [
        (distilled({"ensemble": "replies"}), "'replies' must be an ensemble that stands before"),
        (distilled({"ensemble": "nobody"}), "'nobody' must be an ensemble that stands before"),
        (distilled({"ensemble": "topics"}), "'topics' answers another task or column"),
        (distilled({"member": "first/z"}), "'first/z' is not a member; 'first' has a, b"),
        (distilled({"member": "first/a", "path": "x"}), "exactly one of ensemble, member and path"),
        (distilled({}), "exactly one of ensemble, member and path (given: none)"),
        (
            distilled({"ensemble": "first"}, {"kind": "p_tuning"}),
            "virtual tokens that an MLP made",
        ),
        (
            distilled({"ensemble": "first"}, {"kind": "prefix", "projection": 8}),
            "virtual tokens that an MLP made",
        ),
        (
            {"name": "a", "stages": [{"kind": "distillation", "teacher": {"ensemble": "first"}}]},
            "the adapter of the stage before it, and is the first here",
        ),
    ],
)
def test_a_teacher_that_cannot_teach_is_refused(
    member: dict[str, Any], message: str, tmp_path: Path
) -> None:
    """The student is a member of `replies`, which comes after `topics` and `first`."""
    content = recipe_content()
    replies = content["ensembles"][1]
    replies["defaults"] = {}
    content["ensembles"].insert(1, replies | {"name": "first"})
    content["ensembles"][2]["members"] = [member]
    with pytest.raises(RecipeError, match=re.escape(message)):
        parse_recipe(content, folder=tmp_path)


@pytest.mark.parametrize(
    ("base", "message"),
    [
        (
            {
                "kind": "causal",
                "path": "x",
                "copy_files": False,
                "stages": [{"kind": "pretraining"}],
            },
            "leave copy_files: false out",
        ),
        (
            {"kind": "causal", "path": "x", "stages": [{"kind": "tuning"}]},
            "base.stages.0: kind must be one of pretraining, fine_tuning (got 'tuning')",
        ),
        (
            {"kind": "causal", "path": "x", "stages": [{"kind": "fine_tuning", "rank": 4}]},
            "base.stages.0.rank: this key is for the kind lora, not for fine_tuning",
        ),
        (
            {
                "kind": "causal",
                "path": "x",
                "stages": [{"kind": "fine_tuning", "ensembles": ["z"]}],
            },
            "fine_tuning names the unknown ensemble 'z'",
        ),
        (
            {
                "kind": "causal",
                "path": "x",
                "stages": [{"kind": "pretraining", "objective": "masked"}],
            },
            "the objective masked does not fit a base of the kind causal",
        ),
        (
            {"kind": "causal", "scratch": {"objective": "masked"}},
            "the objective masked does not fit a base of the kind causal",
        ),
        (
            {"kind": "encoder", "scratch": {"architecture": "bert", "objective": "autoregressive"}},
            "the objective autoregressive does not fit a base of the kind encoder",
        ),
        (
            {"kind": "encoder", "scratch": {"architecture": "llama"}},
            "the architecture llama is of the kind causal, not encoder",
        ),
        (
            {"kind": "encoder", "path": "x", "answers": "text"},
            "an encoder writes no text: leave out answers",
        ),
        (
            {"kind": "encoder", "scratch": {"architecture": "bert", "kv_heads": 2}},
            "bert has no kv_heads",
        ),
        (
            {
                "kind": "causal",
                "scratch": {"layers": 2},
                "stages": [{"kind": "fine_tuning", "layers": 3}],
            },
            "base: layers is 3, but the base has 2",
        ),
        (
            {"kind": "encoder", "path": "x", "stages": [{"kind": "fine_tuning"}]},
            "fine_tuning under a head is on one ensemble",
        ),
    ],
)
def test_a_base_that_cannot_be_made_is_refused(
    base: dict[str, Any], message: str, tmp_path: Path
) -> None:
    content = recipe_content(base=base)
    if base["kind"] == "encoder":
        content["ensembles"] = [content["ensembles"][0], content["ensembles"][0] | {"name": "two"}]
    with pytest.raises(RecipeError, match=re.escape(message)):
        parse_recipe(content, folder=tmp_path)


def test_a_lora_on_more_layers_than_there_are_is_refused(tmp_path: Path) -> None:
    content = changed("ensembles.0.members.0.layers", 3)
    with pytest.raises(RecipeError, match="topics/a: layers is 3, but the base has 2"):
        parse_recipe(content, folder=tmp_path)


@pytest.mark.parametrize("kind", ["prefix", "prompt", "p_tuning"])
def test_virtual_tokens_under_an_encoder_are_refused(kind: str, tmp_path: Path) -> None:
    content = recipe_content(base={"kind": "encoder", "path": "model"})
    content["ensembles"] = content["ensembles"][:1]
    content["ensembles"][0]["members"] = [{"name": "a", "kind": kind}]
    content["ensembles"][0]["candidates"] = []
    with pytest.raises(RecipeError, match="topics/a: prefix, prompt and p_tuning need a causal"):
        parse_recipe(content, folder=tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"members": [{"name": "a", "kind": "prefix"}], "candidates": []},
            "topics/a: prefix, prompt and p_tuning need a causal base that answers by text",
        ),
        (
            {"template": "{text}:"},
            "topics: template, verbalizers and label_scoring are for labels as text",
        ),
        (
            {"label_scoring": "mean"},
            "template, verbalizers and label_scoring are for labels as text",
        ),
        (
            {"task": "generation", "label": None, "target": "reply", "golden": 0, "baselines": []},
            "an engine either pools vectors for heads or writes; put 'topics' into a recipe of its own",
        ),
        (
            {
                "members": [
                    {
                        "name": "a",
                        "stages": [
                            {"kind": "lora"},
                            {"kind": "distillation", "teacher": {"path": "x"}},
                        ],
                    }
                ],
                "candidates": [],
            },
            "topics/a: a teacher's path is for answers by text",
        ),
    ],
)
def test_what_heads_on_a_causal_base_cannot_be_combined_with_is_refused(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    base = {"kind": "causal", "answers": "heads", "path": "model"}
    plain = {"template": "{text}", "verbalizers": {}}
    content = recipe_content(base=base)
    content["ensembles"] = [content["ensembles"][0] | plain | changes]
    with pytest.raises(RecipeError, match=re.escape(message)):
        parse_recipe(content, folder=tmp_path)


def test_paths_start_at_the_recipe_and_take_variables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write_recipe: Callable[..., Path]
) -> None:
    monkeypatch.setenv("CHOIR_TEST_DATA", "/somewhere")
    data = {
        "train": ["rows/a.csv", "${CHOIR_TEST_DATA}/b.csv"],
        "test": "${CHOIR_UNSET_X:-../other}/c.csv",
    }
    recipe = load_recipe(write_recipe(tmp_path / "recipes", data=data))
    assert recipe.data.train is not None
    assert [source.path for source in recipe.data.train] == [
        tmp_path / "recipes/rows/a.csv",
        Path("/somewhere/b.csv"),
    ]
    assert recipe.data.test is not None
    assert [source.path for source in recipe.data.test] == [tmp_path / "other/c.csv"]


@pytest.mark.parametrize("content", ["a: [1", "- 1\n", ""])
def test_what_is_not_a_mapping_is_refused_in_one_sentence(content: str, tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(content)
    with pytest.raises(RecipeError, match=r"recipe\.yaml") as refusal:
        load_recipe(file)
    assert "\n" not in str(refusal.value)


def test_a_recipe_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="cannot read the recipe"):
        load_recipe(tmp_path / "none.yaml")


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.parent.name)
def test_the_recipes_of_the_project_are_valid(file: Path) -> None:
    assert len(load_recipe(file).ensembles[0].members) >= 3


def test_labels_of_a_recipe_have_the_spelling_of_labels_in_cells(tmp_path: Path) -> None:
    content = changed("ensembles.0.labels", [" card", "cafe\u0301", "top_up"])
    content["ensembles"][0]["verbalizers"] = {"card ": "a card"}
    ensemble = parse_recipe(content, folder=tmp_path).ensembles[0]
    assert ensemble.labels == ["card", "caf\u00e9", "top_up"]
    assert ensemble.verbalizers == {"card": "a card"}


def test_a_label_that_cells_could_not_hold_is_refused(tmp_path: Path) -> None:
    content = recipe_content(base={"kind": "encoder", "path": "nowhere"})
    ensemble = {"name": "e", "task": "multilabel", "label": "label", "members": [{"name": "a"}]}
    content["ensembles"] = [ensemble | {"labels": ["C|C++", "code"]}]
    with pytest.raises(RecipeError, match=r"the label 'C\|C\+\+' has a \|"):
        parse_recipe(content, folder=tmp_path)
    content["ensembles"] = [ensemble | {"labels": ["code", " code"]}]
    with pytest.raises(RecipeError, match=r"the label 'code' stands twice"):
        parse_recipe(content, folder=tmp_path)

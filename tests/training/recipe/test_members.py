"""Members and candidates: names, defaults, stages and teachers."""

import re
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from serve.manifest import Name
from tests.training.conftest import recipe_content
from tests.training.recipe.conftest import changed
from training.recipe import (
    LoraStage,
    PrefixStage,
    PromptStage,
    RecipeError,
    parse_recipe,
)


def test_the_longest_name_of_an_adapter_is_one_that_the_bundle_takes(tmp_path: Path) -> None:
    recipe = parse_recipe(changed("ensembles.0.members.1.name", "a" * 56), folder=tmp_path)
    [name] = recipe.ensembles[0].members[1].adapter_names("topics")
    assert TypeAdapter(Name).validate_python(name) == f"topics-{'a' * 56}"
    with pytest.raises(ValidationError):
        TypeAdapter(Name).validate_python(f"{name}a")


def test_candidates_that_would_share_a_folder_are_refused(tmp_path: Path) -> None:
    common = {"task": "classification", "label": "label"}
    ensembles = [
        common | {"name": name, "members": [{"name": "m"}], "candidates": [candidate]}
        for name, candidate in (
            ("intents", {"name": "fr-a", "member": "m"}),
            ("intents-fr", {"name": "a", "member": "m"}),
        )
    ]
    said = r"intents/fr-a and intents-fr/a would be in the same folder, candidates/intents-fr-a"
    with pytest.raises(RecipeError, match=said):
        parse_recipe(recipe_content(ensembles=ensembles), folder=tmp_path)


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
        (distilled({"ensemble": "replies"}), "'replies' must be an ensemble that is listed before"),
        (distilled({"ensemble": "nobody"}), "'nobody' must be an ensemble that is listed before"),
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
            "the adapter of the stage before it, and here it is the first stage",
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


def test_a_lora_on_more_layers_than_there_are_is_refused(tmp_path: Path) -> None:
    content = changed("ensembles.0.members.0.layers", 3)
    with pytest.raises(RecipeError, match="topics/a: layers is 3, but the base has 2"):
        parse_recipe(content, folder=tmp_path)


ALORA = {"name": "a", "kind": "alora"}


@pytest.mark.parametrize(
    ("template", "member", "invocation"),
    [
        ("Message: {text}\nIntent:", ALORA, "\nIntent:"),
        ("{text}{invocation}", ALORA | {"invocation": "Say"}, "Say"),
        ("{text}\nPlease say", ALORA | {"invocation": " say"}, " say"),
        ("{text}\nIntent:", {"name": "a"}, None),
    ],
)
def test_an_activated_lora_begins_at_the_templates_end(
    template: str, member: dict[str, Any], invocation: str | None, tmp_path: Path
) -> None:
    content = changed("ensembles.0.template", template)
    content["ensembles"][0] |= {"members": [member], "candidates": []}
    ensemble = parse_recipe(content, folder=tmp_path).ensembles[0]
    assert ensemble.invocation(ensemble.members[0]) == invocation


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"template": "{text}"}, "say from which text the activated LoRA acts"),
        ({"template": "a\n{text}"}, "say from which text the activated LoRA acts"),
        ({"template": "{text}{invocation}"}, "say from which text the activated LoRA acts"),
        ({"template": "{invocation}{text}"}, "stands at the template's end"),
        (
            {"template": "{text}", "members": [ALORA | {"invocation": "Say"}]},
            "the template must end in {invocation} or in 'Say'",
        ),
        (
            {"members": [{"name": "a", "stages": [{"kind": "lora"}, {"kind": "alora"}]}]},
            "the stages lora, alora cannot be one member",
        ),
        (
            {"members": [{"name": "a", "stages": [{"kind": "alora"}, {"kind": "prefix"}]}]},
            "the stages alora, prefix cannot be one member",
        ),
        ({"merges": ["cat"]}, "merges are of LoRAs, and member 'a' is not one LoRA"),
    ],
)
def test_an_activated_lora_that_nothing_would_invoke_is_refused(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    content = changed("ensembles.0.template", "{text}\nIntent:")
    content["ensembles"][0] |= {"members": [ALORA], "candidates": [], "defaults": {}, **changes}
    with pytest.raises(RecipeError, match=re.escape(message)):
        parse_recipe(content, folder=tmp_path)


def test_an_activated_lora_under_heads_is_refused(tmp_path: Path) -> None:
    content = recipe_content(base={"kind": "encoder", "path": "model"})
    content["ensembles"] = content["ensembles"][:1]
    content["ensembles"][0] |= {"members": [ALORA | {"invocation": "x"}], "candidates": []}
    content["ensembles"][0]["template"] = "{text}x"
    with pytest.raises(RecipeError, match="topics/a: alora needs a causal base"):
        parse_recipe(content, folder=tmp_path)


@pytest.mark.parametrize("kind", ["prefix", "prompt", "p_tuning"])
def test_virtual_tokens_under_an_encoder_are_refused(kind: str, tmp_path: Path) -> None:
    content = recipe_content(base={"kind": "encoder", "path": "model"})
    content["ensembles"] = content["ensembles"][:1]
    content["ensembles"][0]["members"] = [{"name": "a", "kind": kind}]
    content["ensembles"][0]["candidates"] = []
    with pytest.raises(RecipeError, match="topics/a: prefix, prompt and p_tuning need a causal"):
        parse_recipe(content, folder=tmp_path)


def test_the_values_of_a_members_rows_are_read_as_cells_are(tmp_path: Path) -> None:
    """A number or a date that YAML reads is the text that stands in a file's cell."""
    rows = {"column": "month", "values": ["may ", 7, date(2024, 5, 1)]}
    content = changed("ensembles.0.defaults", {"rows": rows})
    content["ensembles"][0]["members"][1]["rows"] = {"column": "team", "values": ["cards"]}
    first, second = parse_recipe(content, folder=tmp_path).ensembles[0].members
    assert first.rows is not None
    assert first.rows.values == ["may", "7", "2024-05-01"]
    assert second.rows is not None
    assert second.rows.column == "team"


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ({"column": "team"}, r"members.0.rows.values: this key is required"),
        ({"column": "team", "values": []}, r"members.0.rows.values: List should have at least 1"),
        ({"colum": "team", "values": ["a"]}, r"members.0.rows.colum: .*did you mean column\?"),
    ],
)
def test_rows_name_a_column_and_values(rows: dict[str, Any], said: str, tmp_path: Path) -> None:
    content = changed("ensembles.0.members.0", {"name": "a", "rows": rows})
    with pytest.raises(RecipeError, match=said):
        parse_recipe(content, folder=tmp_path)

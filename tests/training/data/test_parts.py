"""Members that learn from a part of the rows: a team's, a region's, a month's."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from serve.bundle import Bundle
from tests.training.conftest import recipe_content, write_rows
from training.data.splits import Splits
from training.preparation import load_splits
from training.progress import Unwatched
from training.recipe import MemberRecipe, Recipe, RecipeError, parse_recipe
from training.stages.base import Base
from training.stages.fit import Stage
from training.stages.member import MemberData, MemberStage, train_stage

TEAMS = ("north", "south", "west")


def recipe(folder: Path, rows: dict[str, Any] | None) -> Recipe:
    """The tiny recipe on rows with a `team`, whose first member learns from `rows`."""
    lines = write_rows(folder / "train.csv", 96).read_text().splitlines()
    teams = ["team", *(TEAMS[number // 7 % 3] for number in range(96))]
    whole = [f"{line},{team}" for line, team in zip(lines, teams, strict=True)]
    (folder / "train.csv").write_text("\n".join(whole) + "\n")
    write_rows(folder / "test.csv", 30)
    content = recipe_content()
    content["ensembles"][0]["members"][0]["rows"] = rows
    return parse_recipe(content, folder=folder)


def trained(
    made: Recipe, member: MemberRecipe, splits: Splits, bundle: Bundle, folder: Path
) -> dict[str, Any]:
    base = Base(Path(bundle.base_source), "causal", "base", by_heads=False)
    labels = sorted(set(splits.train["label"]))
    data = MemberData(splits.train, "text", labels, None)
    stage = Stage("a", folder / "checkpoints", "float32", Unwatched())
    own = MemberStage(member, member.stages[0])
    train_stage(own, made.ensembles[0], base, data, stage, folder / "adapter")
    return load_file(folder / "adapter" / "adapter_model.safetensors")


@pytest.mark.slow
def test_a_member_with_rows_is_what_training_on_these_rows_alone_makes(
    tmp_path: Path, causal_bundle: Bundle
) -> None:
    """Validation and test rows stay those of all teams."""
    made = recipe(tmp_path, {"column": "team", "values": ["north", "west"]})
    splits = load_splits(made, tmp_path / "work")
    assert len(splits.validation) == 24
    assert splits.test is not None
    assert len(splits.test) == 30
    member = made.ensembles[0].members[0].model_copy(update={"bag": 1.0})
    by_rows = trained(made, member, splits, causal_bundle, tmp_path / "rows")
    kept = [row for row, team in enumerate(splits.train["team"]) if team != "south"]
    assert 0 < len(kept) < len(splits.train)
    alone = Splits(splits.train.select(kept), splits.validation, splits.test, splits.families)
    plain = member.model_copy(update={"rows": None})
    expected = trained(made, plain, alone, causal_bundle, tmp_path / "alone")
    everything = trained(made, plain, splits, causal_bundle, tmp_path / "everything")
    assert all(bool((by_rows[name] == expected[name]).all()) for name in expected)
    assert any(bool((by_rows[name] != everything[name]).any()) for name in expected)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (
            {"column": "team", "values": ["north", "east"]},
            r"member topics/a: no training row has the value 'east' in the column 'team'; its values are .*'north' \(",
        ),
        ({"column": "region", "values": ["north"]}, r"train.csv has no column 'region'"),
    ],
)
def test_rows_that_no_training_row_has_are_refused_before_training(
    rows: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match=said):
        load_splits(recipe(tmp_path, rows), tmp_path / "work")


def test_generated_rows_without_the_column_are_refused(
    tmp_path: Path, write_recipe: Callable[..., Path]
) -> None:
    content = recipe_content(data={"example": {"train_rows": 40, "test_rows": 10}})
    content["ensembles"] = [
        {
            "name": "intents",
            "task": "classification",
            "label": "intent",
            "members": [{"name": "a", "rows": {"column": "region", "values": ["north"]}}],
        }
    ]
    with pytest.raises(RecipeError, match=r"the train rows have no column 'region'"):
        load_splits(parse_recipe(content, folder=tmp_path), tmp_path / "work")

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from training.data.splits import (
    bag,
    grouped_split,
    out_of_fold_plan,
    random_split,
    repeated,
    stratified_split,
    time_split,
)
from training.preparation import load_splits
from training.recipe import RecipeError, load_recipe


def test_a_split_is_disjoint_complete_and_stratified() -> None:
    strata = ["common"] * 80 + ["rare"] * 20 + ["single"]
    kept, held_out = stratified_split(strata, 0.25, seed=1)
    assert sorted(kept + held_out) == list(range(101))
    assert Counter(strata[index] for index in held_out) == {"common": 20, "rare": 5}


def test_a_split_is_the_same_again_and_another_with_another_seed() -> None:
    strata = ["a", "b"] * 50
    assert stratified_split(strata, 0.2, seed=1) == stratified_split(strata, 0.2, seed=1)
    assert stratified_split(strata, 0.2, seed=1) != stratified_split(strata, 0.2, seed=2)


def test_a_fraction_bag_has_no_row_twice() -> None:
    rows = bag(100, 0.6, seed=1)
    assert len(rows) == len(set(rows)) == 60
    assert rows != bag(100, 0.6, seed=2)


def test_a_bootstrap_bag_leaves_about_a_third_out() -> None:
    rows = bag(1000, "bootstrap", seed=1)
    assert len(rows) == 1000
    assert 600 < len(set(rows)) < 660


def test_no_validation_row_is_among_the_training_rows(
    tmp_path: Path, write_recipe: Callable[..., Path]
) -> None:
    splits = load_splits(load_recipe(write_recipe(tmp_path)), tmp_path / "work")
    assert splits.test is not None
    assert len(splits.train) + len(splits.validation) == 96
    assert not set(splits.train["text"]) & set(splits.validation["text"])
    assert splits.test.column_names == ["text", "label", "reply"]


@pytest.mark.parametrize("share", [0.001, 1.0])
def test_a_bag_is_never_empty_and_never_more_than_all(share: float) -> None:
    assert len(bag(10, share, seed=0)) == (1 if share < 1 else 10)


def test_groups_stay_together() -> None:
    groups = [f"customer {number % 17}" for number in range(200)]
    kept, held_out = grouped_split(groups, 0.2, seed=1)
    assert sorted(kept + held_out) == list(range(200))
    assert not {groups[row] for row in kept} & {groups[row] for row in held_out}
    assert 24 <= len(held_out) <= 56
    assert grouped_split(groups, 0.2, seed=1) == (kept, held_out)
    with pytest.raises(RecipeError, match="all rows are of one group"):
        grouped_split(["a"] * 5, 0.2, seed=1)


@pytest.mark.parametrize(
    "times",
    [
        ["2024-03-01", "2024-01-05", "2024-03-01", "2023-12-31", "2024-02-10"],
        ["10", "9.5", "10", "-1", "9.75"],
    ],
)
def test_the_latest_rows_are_held_out_and_one_time_is_not_divided(times: list[str]) -> None:
    assert time_split(times, 0.2) == ([1, 3, 4], [0, 2])
    assert time_split(times, 0.5) == ([1, 3, 4], [0, 2])
    with pytest.raises(RecipeError, match="too many rows share one time"):
        time_split(["5"] * 4, 0.2)


def test_a_random_split_holds_out_the_share() -> None:
    kept, held_out = random_split(50, 0.2, seed=1)
    assert (len(kept), len(held_out)) == (40, 10)


def test_out_of_fold_plans_are_even_and_keep_groups_whole() -> None:
    strata = ["a"] * 40 + ["b"] * 20 + ["rare", "rarer"]
    plan = out_of_fold_plan(strata, 5, seed=1)
    assert sorted(Counter(plan.tolist()).values()) in ([12, 12, 12, 13, 13], [12, 12, 12, 12, 14])
    for fold in range(5):
        counts = Counter(strata[row] for row in range(62) if plan[row] == fold)
        assert 7 <= counts["a"] <= 9
        assert counts["b"] == 4
    groups = [str(row // 4) for row in range(62)]
    plan = out_of_fold_plan(strata, 5, seed=1, groups=groups)
    folds = {group: {plan[row] for row in range(62) if groups[row] == group} for group in groups}
    assert all(len(found) == 1 for found in folds.values())


def test_weights_repeat_rows_and_draw_shares_of_them() -> None:
    times = Counter(repeated([1.0] * 10 + [0.5] * 20 + [2.25] * 8, seed=3))
    assert [times[row] for row in range(10)] == [1] * 10
    assert sorted(times[row] for row in range(10, 30)) == [0] * 10 + [1] * 10
    assert sorted(times[row] for row in range(30, 38)) == [2] * 6 + [3] * 2

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from training.data.splits import bag, stratified_split
from training.preparation import load_splits
from training.recipe import load_recipe


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

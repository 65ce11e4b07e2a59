import contextlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from training.data.splits import bag, fold_plan, hold_out, repeated
from training.preparation import load_splits
from training.recipe import RecipeError, load_recipe


def test_a_split_is_disjoint_complete_and_stratified() -> None:
    strata = ["common"] * 80 + ["rare"] * 20 + ["single"]
    for fraction in (0.25, 0.5):
        kept, held_out = hold_out(range(101), fraction, 1, strata=strata)
        assert sorted(kept + held_out) == list(range(101))
        counts = Counter(strata[index] for index in held_out)
        assert counts == {"common": 80 * fraction, "rare": 20 * fraction}


def test_a_split_depends_on_the_seed_alone() -> None:
    strata = ["a", "b"] * 50
    first = hold_out(range(100), 0.2, 1, strata=strata)
    assert hold_out(range(100), 0.2, 1, strata=strata) == first
    assert hold_out(range(100), 0.2, 2, strata=strata) != first


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


def random_families(seed: int) -> tuple[list[int], list[str]]:
    """Up to 300 rows in families of all sizes, some as large as a third of all, and a stratum for each row."""
    rng = np.random.default_rng(seed)
    count = int(rng.integers(2, 300))
    likely = rng.dirichlet(np.full(int(rng.integers(2, 60)), 0.3))
    families = rng.choice(len(likely), size=count, p=likely).tolist()
    return families, [f"label {n}" for n in rng.integers(0, 4, size=count)]


@pytest.mark.parametrize("seed", range(40))
def test_no_family_is_ever_divided(seed: int) -> None:
    families, strata = random_families(seed)
    for own in (None, strata):
        for fraction in (0.05, 0.2, 0.5):
            kept, held = hold_out(families, fraction, seed, strata=own)
            assert sorted(kept + held) == list(range(len(families)))
            assert not {families[row] for row in kept} & {families[row] for row in held}
            assert kept
    times = [str(n % 7) for n in range(len(families))]
    with contextlib.suppress(RecipeError):
        kept, held = hold_out(families, 0.2, seed, times=times)
        assert not {families[row] for row in kept} & {families[row] for row in held}
        # No training row is later than the end of a held-out family.
        last = dict.fromkeys(families, "")
        for family, time in zip(families, times, strict=True):
            last[family] = max(last[family], time)
        assert max(times[row] for row in kept) < min(last[families[row]] for row in held)
    folds = fold_plan(families, 5, seed, strata)
    if len(set(families)) > 1:
        assert len({*zip(families, folds.tolist(), strict=True)}) == len(set(families))
        assert set(folds.tolist()) == set(range(min(5, len(set(families)))))


def test_families_of_the_size_of_a_group_are_held_out_in_about_the_right_share() -> None:
    groups = [number % 17 for number in range(200)]
    _, held = hold_out(groups, 0.2, 1)
    assert 24 <= len(held) <= 56
    # Every family is larger than the wanted number of rows: the smallest one is taken.
    _, held = hold_out([0] * 50 + [1] * 30 + [2] * 60, 0.05, 1)
    assert held == list(range(50, 80))
    assert hold_out([0] * 5, 0.2, 1) == ([0, 1, 2, 3, 4], [])


@pytest.mark.parametrize(
    "times",
    [
        ["2024-03-01", "2024-01-05", "2024-03-01", "2023-12-31", "2024-02-10"],
        ["10", "9.5", "10", "-1", "9.75"],
    ],
)
def test_the_latest_rows_are_held_out_and_one_time_is_not_divided(times: list[str]) -> None:
    assert hold_out(range(5), 0.2, 1, times=times) == ([1, 3, 4], [0, 2])
    assert hold_out(range(5), 0.5, 1, times=times) == ([1, 3, 4], [0, 2])
    with pytest.raises(RecipeError, match="too many rows share one time"):
        hold_out(range(4), 0.2, 1, times=["5"] * 4)


def test_folds_are_even_and_spread_the_strata() -> None:
    strata = ["a"] * 40 + ["b"] * 20 + ["rare", "rarer"]
    plan = fold_plan(range(62), 5, 1, strata)
    assert sorted(Counter(plan.tolist()).values()) == [12, 12, 12, 13, 13]
    for fold in range(5):
        counts = Counter(strata[row] for row in range(62) if plan[row] == fold)
        assert (counts["a"], counts["b"]) == (8, 4)
    assert sorted(Counter(fold_plan(range(7), 5, 1).tolist()).values()) == [1, 1, 1, 2, 2]
    # A single family must be divided, because there is no other.
    assert len(set(fold_plan([0] * 10, 5, 1).tolist())) == 5


def test_weights_repeat_rows_and_draw_shares_of_them() -> None:
    times = Counter(repeated([1.0] * 10 + [0.5] * 20 + [2.25] * 8, seed=3))
    assert [times[row] for row in range(10)] == [1] * 10
    assert sorted(times[row] for row in range(10, 30)) == [0] * 10 + [1] * 10
    assert sorted(times[row] for row in range(30, 38)) == [2] * 6 + [3] * 2

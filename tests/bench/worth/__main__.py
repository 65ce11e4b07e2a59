"""Whether several members are worth their passes on BANKING77: in two settings where one member cannot know all, and
distilled into one. And what others reach on E2E.

`python -m tests.bench.worth few` draws 10 rows a label five times, and trains four members on each draw.
`python -m tests.bench.worth fifths` parts all training rows into five disjoint parts with one member each, and trains
the rival that sees all rows.
`python -m tests.bench.worth distilled --bundle BUNDLE` distils a copy of a finished bundle of the recipe, and says how
much of the ensemble's gain the student keeps.
`python -m tests.bench.worth activated` compares activated LoRAs with plain ones, on the example's messages.
`python -m tests.bench.worth tgen --bundle BUNDLE` draws 300 of E2E's test inputs, and judges the answers of TGen and
of a bundle of `smollm2_e2e.yaml`, which it serves.

`--out` names a folder for the bundles; a run that was stopped goes on in it. The settings are those of
`training/recipes/banking77.yaml`; nothing was chosen on these rows. `few`, `fifths` and `distilled` took 45, 25 and
36 core-minutes."""

import argparse
import csv
import shutil
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from serve.bundle import Bundle
from tests.bench.conftest import banking77
from tests.bench.worth.activated import activated
from tests.bench.worth.figures import Judged, judged, show
from tests.bench.worth.tgen import tgen
from training.distilled import DistilOptions, distil
from training.execution.progress_table import ProgressTable
from training.pipeline import train

RECIPE = Path("training/recipes/banking77.yaml")
DRAWS = range(1, 6)
ROWS_A_LABEL = 10
EPOCHS_OF_FEW = 8
"""Twice as many as on all rows: an epoch has a thirteenth of the steps."""
FIFTHS = 5

Rows = list[dict[str, str]]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.worth", description=__doc__)
    parser.add_argument("setting", choices=["few", "fifths", "distilled", "activated", "tgen"])
    parser.add_argument("--out", type=Path, default=Path("worth"), help="folder for the bundles")
    parser.add_argument("--bundle", type=Path, help="a finished bundle of the recipe")
    given = parser.parse_args()
    if given.setting == "distilled":
        if given.bundle is None:
            parser.error("distilled needs --bundle")
        distilled(given.bundle, given.out / "distilled")
    elif given.setting == "activated":
        activated(given.out / "activated")
    elif given.setting == "tgen":
        tgen(given.out / "tgen", given.bundle)
    elif given.setting == "few":
        show("10 rows a label", [few(draw, given.out / f"few-{draw}") for draw in DRAWS])
    else:
        show("five fifths", [fifths(given.out / "fifths")])


def few(draw: int, folder: Path) -> Judged:
    """Train four members on 10 rows a label, of which one is kept to fit the temperature."""
    rng = np.random.default_rng(draw)
    by_label: dict[str, Rows] = defaultdict(list)
    for row in banking77("train.csv"):
        by_label[row["category"]].append(row)
    rows = [
        label_rows[place]
        for label_rows in by_label.values()
        for place in rng.choice(len(label_rows), ROWS_A_LABEL, replace=False)
    ]
    first, second, third, fourth = recipe()["ensembles"][0]["members"][:4]
    members = [
        each | {"seed": 10 * draw + number}
        for number, each in enumerate([first, second, third, fourth])
    ]
    return run(folder, rows, members, validation_fraction=0.1, epochs=EPOCHS_OF_FEW)


def fifths(folder: Path) -> Judged:
    """Train one member on each of five disjoint parts of all rows, and the rival of all five on all of them."""
    rows = banking77("train.csv")
    parts = np.random.default_rng(0).permutation(len(rows)) % FIFTHS
    whole = [row | {"part": str(part)} for row, part in zip(rows, parts, strict=True)]
    members = [
        {"name": f"fifth-{part}", "seed": part, "rows": {"column": "part", "values": [part]}}
        for part in range(FIFTHS)
    ]
    return run(folder, whole, members, rivals=True, validation_fraction=0.05)


def distilled(bundle: Path, folder: Path) -> None:
    """Distil a copy of the bundle, and print how much of the gain in log loss the student keeps on the test rows."""
    if not folder.exists():
        shutil.copytree(bundle, folder)
        with ProgressTable() as watch:
            distil(folder, "intents", None, DistilOptions(epochs=3, variations=1), watch)
    test = banking77("test.csv")
    texts, answers = [row["text"] for row in test], [row["category"] for row in test]
    found = judged(Bundle.open(folder), "intents", texts, answers)
    show("distilled", [found])
    best, fused, own = (
        float(found.losses[name].mean()) for name in (found.best, "average", "distilled")
    )
    print(f"  the student keeps {(best - own) / (best - fused):.2f} of the gain in log loss")


def recipe() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))
    return content


def run(
    folder: Path,
    rows: Rows,
    members: list[dict[str, Any]],
    *,
    validation_fraction: float,
    rivals: bool = False,
    epochs: int | None = None,
) -> Judged:
    """Train `members` by the recipe's other settings, and judge them on all test rows."""
    folder.mkdir(parents=True, exist_ok=True)
    test = banking77("test.csv")
    for name, written in (("train.csv", rows), ("test.csv", test)):
        with (folder / name).open("w", newline="", encoding="utf-8") as lines:
            writer = csv.DictWriter(lines, list(written[0]))
            writer.writeheader()
            writer.writerows(written)
    content = recipe()
    content["data"] |= {
        "train": "train.csv",
        "test": "test.csv",
        "validation_fraction": validation_fraction,
    }
    (ensemble,) = content["ensembles"]
    ensemble |= {"members": members, "rivals": rivals, "baselines": [], "golden": 0}
    ensemble["fusion"] = {"method": "average", "candidates": ["average"], "criterion": "log_loss"}
    ensemble["defaults"] |= {"epochs": epochs} if epochs else {}
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    bundle: Bundle = train(file, folder / "bundle", resume=(folder / "bundle").exists())
    return judged(
        bundle, "intents", [row["text"] for row in test], [row["category"] for row in test]
    )


if __name__ == "__main__":
    main()

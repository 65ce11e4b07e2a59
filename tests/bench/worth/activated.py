"""What an activated LoRA loses against plain ones: three ensembles of three members on the same rows and one base.

They differ in the adapters alone: activated LoRAs, LoRAs of the same rank, and LoRAs of four times the rank. Each kind
learns at the rate that suits it, which the validation rows of the first comparison choose. They are judged on the
example's messages alone, and on prompts that show twenty solved messages first, where sharing a prompt matters most."""

import csv
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from tests.bench.worth.figures import Judged, judged, lead
from training.example.messages import rows
from training.pipeline import train

EXAMPLE = Path("training/example/recipe.yaml")
RANK = 16
MEMBERS = 3
SHOTS = 20
SEED = 7
ADAPTERS: Mapping[str, Mapping[str, Any]] = {
    "activated": {"kind": "alora", "rank": RANK, "alpha": 2 * RANK},
    "lora": {"rank": RANK, "alpha": 2 * RANK},
    "lora-wide": {"rank": 4 * RANK, "alpha": 8 * RANK},
}
"""Kind -> the settings of its members."""
RATES = (1.0e-3, 2.0e-3, 5.0e-3)
"""Learning rates to choose from."""

Rates = Mapping[str, Sequence[float]]
"""Kind -> the learning rates of its ensembles, one each."""

Rows = list[dict[str, str]]


def activated(folder: Path) -> None:
    """Train and judge the three kinds, without solved messages before each and with them."""
    every = dict.fromkeys(ADAPTERS, RATES)
    chosen = compare("messages alone", folder / "alone", every, training_rows=1500, shots=0)
    compare(
        f"{SHOTS} solved messages before each",
        folder / "shots",
        {name: [rate] for name, rate in chosen.items()},
        training_rows=800,
        shots=SHOTS,
    )


def compare(
    title: str, folder: Path, rates: Rates, *, training_rows: int, shots: int
) -> dict[str, float]:
    """Train and judge all kinds at all their rates, and print the figures of each at its best. Returns kind -> the rate
    at which its average has the lowest log loss on the validation rows."""
    folder.mkdir(parents=True, exist_ok=True)
    solved = rows("train", training_rows, SEED)
    for split, own in (("train", solved), ("test", rows("test", 600, SEED))):
        with (folder / f"{split}.csv").open("w", newline="", encoding="utf-8") as lines:
            writer = csv.DictWriter(lines, list(own[0]))
            writer.writeheader()
            writer.writerows(with_shots(own, solved, shots))
    file = folder / "recipe.yaml"
    content = recipe(rates, context=1024 if shots else 256)
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    bundle = train(file, folder / "bundle", resume=(folder / "bundle").exists())
    with (folder / "test.csv").open(encoding="utf-8") as lines:
        test = list(csv.DictReader(lines))
    texts, answers = [row["text"] for row in test], [row["intent"] for row in test]
    chosen: dict[str, float] = {}
    found: dict[str, Judged] = {}
    for kind, own_rates in rates.items():
        each = {r: judged(bundle, ensemble_name(kind, r), texts, answers) for r in own_rates}
        chosen[kind] = min(each, key=lambda rate: each[rate].validation["average"])
        found[kind] = each[chosen[kind]]
    show(f"{title}, at the rates {chosen}", found)
    return chosen


def ensemble_name(kind: str, rate: float) -> str:
    return f"{kind}-{rate:.0e}"


def with_shots(own: Rows, solved: Rows, shots: int) -> Rows:
    """Return the rows, each with so many solved messages of the training rows before its text."""
    rng = random.Random(SEED)
    found = []
    for row in own:
        # Repeating the row itself would give its answer away.
        others = [each for each in rng.sample(solved, shots + 1) if each["text"] != row["text"]]
        before = [f"{each['text']}\nIntent:{verbalizer(each)}\nUser: " for each in others[:shots]]
        found.append(row | {"text": "".join(before) + row["text"]})
    return found


def verbalizer(row: dict[str, str]) -> str:
    return str(example()["verbalizers"][row["intent"]])


def example() -> dict[str, Any]:
    """Return the example's ensemble that classifies."""
    (found,) = (each for each in whole_example()["ensembles"] if each["name"] == "intents")
    return dict(found)


def whole_example() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(EXAMPLE.read_text(encoding="utf-8"))
    return content


def recipe(rates: Rates, context: int) -> dict[str, Any]:
    content = whole_example()
    content["base"]["scratch"]["context"] = context
    content["data"] = content["data"] | {"train": "train.csv", "test": "test.csv"}
    del content["data"]["example"]
    one = example()
    del one["candidates"], one["golden"]
    one["fusion"] = {"method": "average", "candidates": ["average"]}
    content["ensembles"] = [
        one
        | {
            "name": ensemble_name(kind, rate),
            "defaults": {"epochs": 4, "batch_size": 16, "learning_rate": rate},
            "members": [
                {"name": f"{kind}-{seed}", "seed": seed, **ADAPTERS[kind]}
                for seed in range(MEMBERS)
            ],
        }
        for kind, own in rates.items()
        for rate in own
    ]
    return content


def show(title: str, found: Mapping[str, Judged]) -> None:
    """Print the figures of members and averages, and the activated average's lead over the others."""
    count = len(next(iter(found["activated"].right.values())))
    print(f"\n{title}: accuracy and log loss on {count} test rows")
    for name, each in found.items():
        for system in each.right:
            right, loss = each.right[system].mean(), each.losses[system].mean()
            print(f"  {name if system == 'average' else '  ' + system:14} {right:.4f}  {loss:.4f}")
    own = found["activated"]
    for name in [each for each in found if each != "activated"]:
        other = found[name]
        more = own.right["average"] - other.right["average"]
        less = other.losses["average"] - own.losses["average"]
        print(
            f"  activated over {name}, fused: accuracy {lead(more)}; log loss lower by {lead(less)}"
        )
        ones, others = (np.mean([of.right[m] for m in of.members], axis=0) for of in (own, other))
        print(f"  activated over {name}, a member on average: accuracy {lead(ones - others)}")

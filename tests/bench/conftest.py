"""The demo's bundle, trained once, and its messages; or a bundle that stands in for it, over a base of your own."""

import csv
import os
import shutil
from pathlib import Path

import pytest

from serve.adapter import WEIGHTS
from serve.bundle import Bundle
from serve.manifest import Ensemble, FusionSpec
from tests.bench.stand_in import chosen_base, stand_in

BUNDLE = Path(".choir-demo/bundle")
RECIPE = Path("training/example/recipe.yaml")
VLLM_ALONE, ENGINE = "vLLM directly", "the engine's predict"


@pytest.fixture(scope="session")
def demo_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if (base := chosen_base()) is not None:
        return stand_in(base, tmp_path_factory.mktemp("stand-in") / "bundle")
    from training.pipeline import train

    train(RECIPE, BUNDLE, resume=True)
    return BUNDLE


def three_loras(bundle: Bundle) -> Ensemble:
    """The first three members of the demo's `intents`, which are LoRAs, as an ensemble of their own, averaged."""
    intents = bundle.ensemble("intents")
    fusion = FusionSpec(method="average")
    own = {"name": "three", "members": intents.members[:3], "fusion": fusion, "golden": []}
    return intents.model_copy(update=own)


@pytest.fixture(scope="session")
def messages() -> list[str]:
    from training.example.messages import rows

    return [row["text"] for row in rows("bench", 200, seed=99)]


@pytest.fixture(scope="session")
def rates() -> dict[str, float]:
    """Predictions per second by what answered them, for ratios between the files' benchmarks."""
    return {}


@pytest.fixture(scope="session")
def load_seconds() -> list[float]:
    """How long vLLM's own `add_lora` took each time, for the ratio between the files' benchmarks."""
    return []


def variants(lora: Path, root: Path, count: int) -> list[Path]:
    """Make copies of an adapter with other weights, so that each must be loaded anew."""
    from safetensors.torch import load_file, save_file

    folders = [root / f"variant{number}" for number in range(count)]
    for number, folder in enumerate(folders, 1):
        shutil.copytree(lora, folder)
        weights = load_file(folder / WEIGHTS)
        save_file({n: w * (1 + number / 1000) for n, w in weights.items()}, folder / WEIGHTS)
    return folders


def banking77(name: str) -> list[dict[str, str]]:
    """Return rows of the real data set; skip the test where it is absent."""
    with data_file(f"banking77/{name}").open(newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


def data_file(path: str) -> Path:
    """Return a file of real data; skip the test where it is absent."""
    file = Path(os.environ.get("CHOIR_DATA", "../shared/data")) / path
    if not file.exists():
        pytest.skip(f"{file} is not there; docs/results.md says where the data come from")
    return file

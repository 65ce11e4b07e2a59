"""TGen's answers to a draw of E2E's test inputs (Dusek and Jurcicek 2016), by the scorer of `choir leaderboard`."""

import csv
from collections import defaultdict
from pathlib import Path

import numpy as np

from tests.bench.conftest import data_file
from training.evaluation.metrics.resampling import Comparison
from training.evaluation.metrics.text import text_metrics

RUNS = range(5)
INPUTS = 300


def tgen(folder: Path) -> None:
    """Write the drawn inputs with all of their references to `folder/test.csv`, and print BLEU and chrF of TGen's five
    runs on them."""
    references: dict[str, list[str]] = defaultdict(list)
    with data_file("e2e_nlg/test.csv").open(newline="", encoding="utf-8") as lines:
        for row in csv.DictReader(lines):
            references[row["mr"]].append(row["ref"])
    inputs = list(references)
    drawn = sorted(np.random.default_rng(0).choice(len(inputs), INPUTS, replace=False).tolist())
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "test.csv").open("w", newline="", encoding="utf-8") as lines:
        writer = csv.writer(lines)
        writer.writerow(["mr", "ref"])
        writer.writerows([inputs[n], right] for n in drawn for right in references[inputs[n]])
    print(f"{folder / 'test.csv'}: {INPUTS} of {len(inputs)} inputs")
    rights = [references[inputs[n]] for n in drawn]
    answers = [_run(run) for run in RUNS]
    compared = Comparison(
        [text_metrics([said[n] for n in drawn], rights) for said in answers], INPUTS
    )
    for run in RUNS:
        bleu, chrf = (compared.interval(run, metric) for metric in ("bleu", "chrf"))
        print(
            f"  TGen, run {run}: BLEU {bleu.value:.2f} ({bleu.low:.2f} to {bleu.high:.2f}), "
            f"chrF {chrf.value:.2f} ({chrf.low:.2f} to {chrf.high:.2f})"
        )


def _run(number: int) -> list[str]:
    """Return a run's answers, in the order in which the inputs first appear in test.csv."""
    return data_file(f"e2e_nlg/tgen/tgen-std.run{number}.txt").read_text("utf-8").splitlines()

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from nltk.translate.meteor_score import single_meteor_score
from numpy.typing import NDArray
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics import BLEU, CHRF

from tests.training.evaluation.metrics.conftest import ROWS
from training.evaluation.metrics.text import METEOR_PLAIN, text_metrics, text_signatures

ONE = [f"the {n} mills are {n % 7} french places near the river" for n in range(ROWS)]
TWO = [f"near the river you find {n} mills" for n in range(ROWS)]
REFERENCES = [
    [one, two] if n % 2 else [one] for n, (one, two) in enumerate(zip(ONE, TWO, strict=True))
]
ANSWERS = [
    text.replace("mills", "mill") if n % 3 else TWO[n].replace("river", "centre")
    for n, text in enumerate(ONE)
]


def values(times: NDArray[np.float64]) -> dict[str, float]:
    return {
        name: float(metric(times)[0]) for name, metric in text_metrics(ANSWERS, REFERENCES).items()
    }


def test_corpus_scores_are_those_of_sacrebleu_on_the_rows_drawn(
    drawn: NDArray[np.int64], times: NDArray[np.float64]
) -> None:
    answers = [ANSWERS[n] for n in drawn]
    streams = [[ONE[n] for n in drawn], [TWO[n] if n % 2 else None for n in drawn]]
    found = values(times)
    assert found["bleu"] == pytest.approx(BLEU().corpus_score(answers, streams).score)
    assert found["chrf"] == pytest.approx(CHRF().corpus_score(answers, streams).score)


def test_signatures_say_how_figures_were_computed() -> None:
    signatures = text_signatures(REFERENCES)
    assert signatures["bleu"].startswith("nrefs:var|case:mixed|eff:no|tok:13a|smooth:exp|version:")
    assert "nc:6|nw:0" in signatures["chrf"]
    assert text_signatures([["a"], ["b"]])["bleu"].startswith("nrefs:1|")


def test_rouge_is_rouge_scores_with_the_closest_reference() -> None:
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
    found = values(np.ones((1, ROWS)))
    for kind in ("rouge1", "rouge2", "rougeL"):
        best = [
            max(scorer.score(right, answer)[kind].fmeasure for right in rights)
            for answer, rights in zip(ANSWERS, REFERENCES, strict=True)
        ]
        assert found[kind] == pytest.approx(np.mean(best))


class NoSynonyms:
    def synsets(self, word: str) -> list[str]:
        return []


def test_meteor_without_wordnet_matches_words_and_stems_and_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("nltk.data.path", [])
    found = values(np.ones((1, ROWS)))
    assert "meteor" not in found
    expected = [
        max(
            single_meteor_score(right.split(), answer.split(), wordnet=NoSynonyms())
            for right in rights
        )
        for answer, rights in zip(ANSWERS, REFERENCES, strict=True)
    ]
    assert found[METEOR_PLAIN] == pytest.approx(np.mean(expected))


def test_exact_match_and_word_f1_by_hand() -> None:
    answers = ["Your  LAMP is late.", "We send it now", ""]
    references = [
        ["It comes soon.", "your lamp is late."],
        ["We send a lamp now", "Soon"],
        ["Yes."],
    ]
    found = text_metrics(answers, references)
    whole = np.ones((1, 3))
    assert found["exact_match"](whole)[0] == pytest.approx(1 / 3)
    # Second answer: three of its four words are among the five expected: F1 = 2 * 3 / (4 + 5).
    assert found["token_f1"](whole)[0] == pytest.approx((1 + 6 / 9 + 0) / 3)


@pytest.fixture
def small_wordnet(tmp_path: Path) -> Path:
    """nltk data with a WordNet of one synset: car, auto."""
    folder = tmp_path / "corpora" / "wordnet"
    folder.mkdir(parents=True)
    header = "  1 WordNet 3.0 Copyright 2006 by Princeton University\n"
    for part in ("noun", "verb", "adj", "adv"):
        (folder / f"data.{part}").write_text(header)
        (folder / f"index.{part}").write_text(header)
        (folder / f"{part}.exc").write_text("")
    place = f"{len(header):08d}"
    with (folder / "data.noun").open("a") as data:
        data.write(f"{place} 00 n 02 car 0 auto 0 000 | a vehicle\n")
    with (folder / "index.noun").open("a") as index:
        index.write(f"auto n 1 0 1 1 {place}  \ncar n 1 0 1 1 {place}  \n")
    (folder / "lexnames").write_text("00\tnoun.artifact\t1\n")
    for name in ("cntlist.rev", "index.sense"):
        (folder / name).write_text("")
    return tmp_path


def test_meteor_takes_synonyms_from_a_wordnet_that_is_there(small_wordnet: Path) -> None:
    """METEOR runs in another process, because nltk reads a corpus once.

    nltk stems words before it looks for synonyms: `automobile` is looked up as `automobil` and not found."""
    code = """
import numpy as np
from training.evaluation.metrics.text import text_metrics
for answers in (["a red car"], ["a red truck"]):
    metrics = text_metrics(answers, [["a red auto"]])
    print("meteor_exact_stem" in metrics, round(float(metrics["meteor"](np.ones((1, 1)))[0]), 4))
"""
    environment = os.environ | {"NLTK_DATA": str(small_wordnet)}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        capture_output=True, text=True, check=False, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    # Three matches in one chunk: 1 - 0.5 (1/3)^3; two matches of three words: F is 2/3, times 1 - 0.5 (1/2)^3.
    assert done.stdout.split() == ["False", "0.9815", "False", "0.625"]

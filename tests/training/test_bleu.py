import numpy as np
import pytest
from sacrebleu.metrics import BLEU

from training.bleu import Bleu

REFERENCES = [
    [f"the {name} is a {food} place near the river", f"near the river you find the {name}"]
    for name in ("mill", "vaults", "golden palace", "twenty two", "eagle")
    for food in ("french", "cheap italian", "fast food", "chinese", "family friendly")
]
EXACT = [right[0] for right in REFERENCES]
CLOSE = [answer.replace("river", "centre") for answer in EXACT]
WORSE = [answer.replace("place near", "pub by").replace("river", "centre") for answer in EXACT]


def test_scores_are_those_of_sacrebleu() -> None:
    streams = [list(stream) for stream in zip(*REFERENCES, strict=True)]
    expected = [BLEU().corpus_score(system, streams).score for system in (EXACT, CLOSE, WORSE)]
    assert Bleu([EXACT, CLOSE, WORSE], REFERENCES).scores == pytest.approx(expected)


def test_references_may_differ_in_number() -> None:
    references = [right[: 1 + number % 2] for number, right in enumerate(REFERENCES)]
    streams = [[right[0] for right in references], [(*right, None)[1] for right in references]]
    expected = BLEU().corpus_score(CLOSE, streams).score
    assert Bleu([CLOSE], references).scores == pytest.approx([expected])


def test_the_interval_is_that_of_sacrebleus_bootstrap() -> None:
    mixed = [a if n % 3 else b for n, (a, b) in enumerate(zip(CLOSE, WORSE, strict=True))]
    streams = [list(stream) for stream in zip(*REFERENCES, strict=True)]
    theirs = BLEU().corpus_score(mixed, streams, n_bootstrap=2000)
    ours = Bleu([mixed], REFERENCES).interval(0)
    assert ours.low < ours.value < ours.high
    assert (ours.high - ours.low) / 2 == pytest.approx(theirs._ci, rel=0.15)


def test_a_difference_is_paired() -> None:
    bleu = Bleu([CLOSE, WORSE, CLOSE], REFERENCES)
    same = bleu.difference(0, [2])
    assert (same.value, same.low, same.high) == (0, 0, 0)
    better = bleu.difference(0, [1, 2])
    assert better.value == pytest.approx(bleu.scores[0] - np.mean(bleu.scores[1:]))
    assert 0 < better.low < better.value < better.high

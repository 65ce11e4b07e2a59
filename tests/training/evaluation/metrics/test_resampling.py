import numpy as np
import pytest
from sacrebleu.metrics import BLEU
from sacrebleu.significance import PairedTest
from scipy import stats

from training.evaluation.metrics import resampling
from training.evaluation.metrics.resampling import Comparison, mean_over_rows
from training.evaluation.metrics.text import text_metrics

REFERENCES = [
    [f"the {name} is a {food} place near the river", f"near the river you find the {name}"]
    for name in ("mill", "vaults", "golden palace", "twenty two", "eagle")
    for food in ("french", "cheap italian", "fast food", "chinese", "family friendly")
]
CLOSE = [right[0].replace("river", "centre") for right in REFERENCES]
WORSE = [answer.replace("place near", "pub by") for answer in CLOSE]
MIXED = [a if n % 3 else b for n, (a, b) in enumerate(zip(CLOSE, WORSE, strict=True))]


def test_an_interval_of_a_mean_is_that_of_scipys_bootstrap() -> None:
    values = np.random.default_rng(0).exponential(size=300)
    ours = Comparison([{"mean": mean_over_rows(values)}], 300, samples=4000).interval(0, "mean")
    theirs = stats.bootstrap(
        (values,), np.mean, n_resamples=4000, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    width = theirs.high - theirs.low
    assert ours.value == pytest.approx(values.mean())
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.1 * width)


def test_blocks_of_resamples_are_the_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).normal(size=50)
    whole = Comparison([{"mean": mean_over_rows(values)}], 50).interval(0, "mean")
    monkeypatch.setattr(resampling, "CHUNK_CELLS", 50 * 7)
    assert Comparison([{"mean": mean_over_rows(values)}], 50).interval(0, "mean") == whole


def test_bleus_interval_and_p_value_are_those_of_sacrebleu() -> None:
    streams = [list(stream) for stream in zip(*REFERENCES, strict=True)]
    systems = [text_metrics(system, REFERENCES) for system in (CLOSE, MIXED)]
    ours = Comparison(systems, len(REFERENCES))
    alone = BLEU().corpus_score(MIXED, streams, n_bootstrap=2000)
    interval = ours.interval(1, "bleu")
    assert (interval.high - interval.low) / 2 == pytest.approx(alone._ci, rel=0.15)
    _, tested = PairedTest(
        [("close", CLOSE), ("mixed", MIXED)], {"BLEU": BLEU()}, streams, n_samples=1000
    )()
    assert ours.gap("bleu", 1, [0]).p == pytest.approx(tested["BLEU"][1].p_value, abs=0.01)


def test_a_gap_is_paired() -> None:
    systems = [text_metrics(system, REFERENCES) for system in (CLOSE, WORSE, CLOSE)]
    compared = Comparison(systems, len(REFERENCES))
    same = compared.gap("bleu", 0, [2])
    assert (same.value, same.low, same.high, same.p) == (0, 0, 0, 1)
    better = compared.gap("bleu", 0, [1, 2])
    means = np.mean([scores["bleu"] for scores in compared.scores[1:]])
    assert better.value == pytest.approx(compared.scores[0]["bleu"] - means)
    assert 0 < better.low < better.value < better.high
    assert better.p < 0.01


def test_a_gap_that_chance_explains_has_a_large_p_value() -> None:
    random = np.random.default_rng(3)
    systems = [{"right": mean_over_rows(random.random(400) < 0.8)} for _ in range(2)]
    gap = Comparison(systems, 400).gap("right", 0, [1])
    assert gap.low < 0 < gap.high
    assert gap.p > 0.05

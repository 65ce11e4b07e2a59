"""How good answers are: figures of classification and of generation, and the table that holds them."""

from collections import Counter
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from serve.fusion.answers import normalise
from serve.fusion.measures import log_loss

ECE_BINS = 15


class Row(BaseModel):
    """One member, fusion method, baseline or chain of stages, and its figures."""

    model_config = ConfigDict(frozen=True)

    name: str
    kind: Literal["member", "fusion", "baseline", "stage"]
    passes: int
    """Forward passes through the base that one answer costs."""
    served: bool
    """Whether this is what the ensemble's manifest answers by."""
    scores: dict[str, float]
    bleu_interval: tuple[float, float] | None = None
    """The middle 95% of BLEU's bootstrap distribution, for generation."""


class Difference(BaseModel):
    """What a fusion method has over the members in BLEU, with the middle 95% of its paired bootstrap distribution."""

    model_config = ConfigDict(frozen=True)

    name: str
    over: str
    """`best member (b)` or `mean member`."""
    value: float
    low: float
    high: float


class Report(BaseModel):
    """Members, fusion methods and baselines of one ensemble on one set of rows."""

    model_config = ConfigDict(frozen=True)

    ensemble: str
    """`name@version`."""
    data: str
    count: int
    rows: list[Row]
    differences: list[Difference] = []

    def best_member(self, score: str) -> float:
        """The highest `score` among the members."""
        return max(row.scores[score] for row in self.rows if row.kind == "member")

    def served(self) -> Row:
        return next(row for row in self.rows if row.served)


def classification_scores(
    probabilities: NDArray[np.float64] | None, winners: NDArray[np.int64], truth: NDArray[np.int64]
) -> dict[str, float]:
    """Accuracy and macro F1 of `winners` [N]; log loss (nats) and calibration error of `probabilities` [N, C]."""
    from sklearn.metrics import f1_score

    scores = {
        "accuracy": float(np.mean(winners == truth)),
        "macro_f1": float(f1_score(truth, winners, average="macro", zero_division=0)),
    }
    if probabilities is not None:
        scores["log_loss"] = log_loss(probabilities, truth)
        scores["ece"] = calibration_error(probabilities.max(axis=1), winners == truth)
    return scores


def calibration_error(confidence: NDArray[np.float64], right: NDArray[np.bool_]) -> float:
    """Expected calibration error over 15 bins of equal width (Guo et al. 2017)."""
    bins = np.minimum((confidence * ECE_BINS).astype(int), ECE_BINS - 1)
    gaps = [
        abs(confidence[bins == number].mean() - right[bins == number].mean())
        * np.mean(bins == number)
        for number in np.unique(bins)
    ]
    return float(sum(gaps))


def generation_scores(
    answers: Sequence[str], references: Sequence[Sequence[str]]
) -> dict[str, float]:
    """Share of answers that equal one of their references after normalisation, and mean F1 of their words with the
    closest one (SQuAD's, Rajpurkar et al. 2016)."""
    pairs = [
        (normalise(answer), [normalise(right) for right in rights])
        for answer, rights in zip(answers, references, strict=True)
    ]
    return {
        "exact_match": float(np.mean([answer in rights for answer, rights in pairs])),
        "token_f1": float(
            np.mean(
                [
                    max(_word_f1(answer.split(), right.split()) for right in rights)
                    for answer, rights in pairs
                ]
            )
        ),
    }


def _word_f1(answer: Sequence[str], reference: Sequence[str]) -> float:
    shared = sum((Counter(answer) & Counter(reference)).values())
    return 2 * shared / (len(answer) + len(reference)) if shared else 0.0

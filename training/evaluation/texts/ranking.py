"""Fits a ranker of answers to validation rows, and ranks answers with it."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from serve.fusion.answers import ranked_answer
from serve.fusion.fitting.options import FusionOptions
from serve.fusion.parameters import parameters_file
from serve.fusion.ranking.candidates import Candidates, same_texts
from serve.fusion.ranking.ranker import Ranker
from serve.manifest import STACK_MODELS, Ensemble, FusionSpec, Method
from training.evaluation.metrics.text import References, sentence_chrf

FOLDS = 5
"""Parts of the validation rows: each is ranked by a ranker that was fitted on the others."""


def wants_ranker(options: FusionOptions) -> bool:
    """Return whether a recipe of generation asks for a ranker, for its own method or for requests that choose it."""
    return "stack" in (options.method, *(options.candidates or ()))


def fit_ranker(
    ensemble: Ensemble, candidates: Sequence[Candidates], references: References
) -> Ranker:
    """Fit a ranker to the members' answers to N rows and the right answers. Raises FusionError."""
    return Ranker.fit(candidates, _qualities(candidates, references), ensemble)


def ranked_texts(ensemble: Ensemble, ranker: Ranker, candidates: Sequence[Candidates]) -> list[str]:
    """Return the answers [N] that the ranker chooses."""
    return [
        each.texts[0]
        if same_texts(each.texts)
        else each.texts[ranked_answer(ensemble, ranker, each).winner]
        for each in candidates
    ]


def cross_ranked(
    ensemble: Ensemble, candidates: Sequence[Candidates], references: References
) -> list[str]:
    """Return the answers [N] that rankers choose which have not seen the row. Raises FusionError."""
    texts = [""] * len(candidates)
    folds = np.arange(len(candidates)) % min(FOLDS, max(len(candidates), 1))
    qualities = _qualities(candidates, references)
    for fold in np.unique(folds):
        known = np.flatnonzero(folds != fold) if len(candidates) > 1 else np.arange(1)
        ranker = Ranker.fit([candidates[row] for row in known.tolist()], qualities[known], ensemble)
        asked = np.flatnonzero(folds == fold)
        own = ranked_texts(ensemble, ranker, [candidates[row] for row in asked.tolist()])
        for row, text in zip(asked, own, strict=True):
            texts[row] = text
    return texts


def ranked_passes(answers: Sequence[Sequence[str]]) -> float:
    """Return how many passes through the base a ranked answer takes in the mean, from the members' answers [N][M]: each
    member writes, and scores all answers where they differ."""
    differ = np.mean([not same_texts(each) for each in answers])
    return float(len(answers[0]) * (1 + differ))


def ranked_by(ensemble: Ensemble, method: Method, place: str) -> FusionSpec:
    """Return the fusion of a manifest with a ranker, whose file lies in the bundle's folder `place`."""
    model = STACK_MODELS["generation"][0]
    spec = {"method": method, "model": model, "parameters": f"{place}/{parameters_file(model)}"}
    return ensemble.fusion.model_copy(update=spec)


def _qualities(candidates: Sequence[Candidates], references: References) -> NDArray[np.float64]:
    """Return the chrF [N, M] of each candidate to the right answers, 0..1."""
    return np.array(
        [
            [sentence_chrf(text, right) for text in each.texts]
            for each, right in zip(candidates, references, strict=True)
        ]
    )

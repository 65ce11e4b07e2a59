"""Merges the labels of several annotators into one label with a confidence (CROWDLAB, Goh et al. 2022)."""

import warnings
from collections.abc import Sequence

import numpy as np

from training.data.annotation.labelled import Guess
from training.data.cleaning.label_errors import FOLDS, out_of_fold, texts_by_label
from training.recipe.values import RecipeError, spelled


def merged_labels(
    texts: Sequence[str], said: Sequence[Sequence[str]], seed: int = 0
) -> list[Guess]:
    """Return one guess for each text, from the labels `said` [annotators][texts]. An empty cell is no opinion.

    cleanlab weighs annotators, and a linear model over the texts, by how often they agree with the others. If some
    label has fewer than 5 texts, no model can be fitted: the majority decides, and its share is the confidence. Raises
    RecipeError if cleanlab is not installed.
    """
    try:
        from cleanlab.multiannotator import get_label_quality_multiannotator
    except ImportError:
        raise RecipeError(
            "data.annotate.annotators needs cleanlab; install Choir with the extra `data`"
        ) from None
    import pandas

    said = [[spelled(label) for label in column] for column in said]
    names = sorted({label for column in said for label in column if label})
    votes = np.array(
        [[names.index(label) if label else np.nan for label in column] for column in said]
    ).T
    asked = np.flatnonzero(~np.isnan(votes).all(axis=1))
    majority = [_majority(row) for row in votes[asked]]
    guesses = [Guess(None, 0.0, "no annotator gave a label")] * len(texts)
    counts = texts_by_label([texts[index] for index in asked], [label for label, _ in majority])
    if len(names) < 2 or min(counts[label] for label in range(len(names))) < FOLDS:
        for index, (label, share) in zip(asked.tolist(), majority, strict=True):
            guesses[index] = Guess(names[label], share, f"{share:.2f} of its annotators")
        return guesses
    likely = out_of_fold(
        [texts[index] for index in asked], np.array([label for label, _ in majority]), seed
    )
    columns = pandas.DataFrame(votes[asked], columns=[str(n) for n in range(len(said))])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # cleanlab warns if annotators always agree
        quality = get_label_quality_multiannotator(
            columns.dropna(axis=1, how="all"), likely, verbose=False
        )["label_quality"]
    for index, label, trust, share in zip(
        asked.tolist(),
        quality["consensus_label"],
        quality["consensus_quality_score"],
        quality["annotator_agreement"],
        strict=True,
    ):
        guesses[index] = Guess(
            names[int(label)], float(trust), f"{share:.2f} of its annotators agree"
        )
    return guesses


def _majority(votes: np.ndarray) -> tuple[int, float]:
    """Return the most frequent label of one row and its share. The first of equally frequent labels wins."""
    labels, counts = np.unique(votes[~np.isnan(votes)], return_counts=True)
    best = int(counts.argmax())
    return int(labels[best]), float(counts[best] / counts.sum())

"""Metrics of written answers: BLEU, chrF, ROUGE, METEOR, exact match and word F1.

Nothing is downloaded. METEOR uses WordNet if it is on this machine, and has another name if it is not.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np

from serve.fusion.answers import normalise
from training.evaluation.metrics.resampling import Floats, Metric, mean_over_rows

References = Sequence[Sequence[str]]
"""All right answers to each row [N][at least one]."""

ROUGE_KINDS = ("rouge1", "rouge2", "rougeL")
METEOR_PLAIN = "meteor_exact_stem"
"""The name of METEOR without WordNet, which matches words only exactly or by stem."""


def text_metrics(answers: Sequence[str], references: References) -> dict[str, Metric]:
    """Return the metrics of `answers` [N]. BLEU and chrF are from 0 to 100, the others from 0 to 1."""
    normal = [normalise(answer) for answer in answers]
    rights = [[normalise(right) for right in row] for row in references]
    pairs = list(zip(normal, rights, strict=True))
    exact = np.array([answer in right for answer, right in pairs])
    words = np.array([_best(_word_f1, answer, right) for answer, right in pairs])
    return {
        "exact_match": mean_over_rows(exact),
        "token_f1": mean_over_rows(words),
        "bleu": _corpus_metric(_bleu(), answers, references),
        "chrf": _corpus_metric(_chrf(), answers, references),
        **_rouge(answers, references),
        **_meteor(answers, references),
    }


def text_signatures(references: References) -> dict[str, str]:
    """Return sacrebleu's signatures of its metrics. Figures are comparable if their signatures are equal."""
    signatures = {}
    for name, metric in (("bleu", _bleu()), ("chrf", _chrf())):
        metric.corpus_score([row[0] for row in references], _streams(references))
        signatures[name] = str(metric.get_signature())
    return signatures


def sentence_chrf(answer: str, references: Sequence[str]) -> float:
    """Return the chrF of one answer to the closest of the right answers, 0..1."""
    return float(_chrf().sentence_score(answer, list(references)).score) / 100


def _bleu() -> Any:
    from sacrebleu.metrics.bleu import BLEU

    return BLEU()


@cache
def _chrf() -> Any:
    from sacrebleu.metrics.chrf import CHRF

    return CHRF()


def _corpus_metric(metric: Any, answers: Sequence[str], references: References) -> Metric:
    """Turn a sacrebleu metric into a Metric, by the two functions that sacrebleu's own paired test uses."""
    statistics = np.array(metric._extract_corpus_statistics(answers, _streams(references)))

    def resampled(times: Floats) -> Floats:
        sums = np.rint(times @ statistics).astype(np.int64)
        return np.array([metric._compute_score_from_stats(row.tolist()).score for row in sums])

    return resampled


def _streams(references: References) -> list[list[str | None]]:
    """Order the references as sacrebleu does: all first ones, all second ones, and so on; None if a row has no more."""
    most = max(len(row) for row in references)
    return [[row[n] if n < len(row) else None for row in references] for n in range(most)]


def _rouge(answers: Sequence[str], references: References) -> dict[str, Metric]:
    """Return ROUGE (Lin 2004): the F1 of shared words, of shared word pairs and of the longest common subsequence, each
    with the closest reference."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(ROUGE_KINDS, tokenizer=_StemmedWords())
    found = [
        scorer.score_multi(right, answer) for answer, right in zip(answers, references, strict=True)
    ]
    return {
        kind: mean_over_rows(np.array([scores[kind].fmeasure for scores in found]))
        for kind in ROUGE_KINDS
    }


class _StemmedWords:
    """rouge-score's tokenizer with a cache: all methods are compared with the same references."""

    def tokenize(self, text: str) -> list[str]:
        return _rouge_words(text)


@cache
def _rouge_words(text: str) -> list[str]:
    from rouge_score.tokenize import tokenize

    words: list[str] = tokenize(text, _Stems())
    return words


def _meteor(answers: Sequence[str], references: References) -> dict[str, Metric]:
    """Return METEOR (Banerjee and Lavie 2005) with the closest reference, by nltk."""
    from nltk.translate.meteor_score import meteor_score

    wordnet = _wordnet()
    scores = [
        meteor_score(
            [_words(right) for right in row], _words(answer), stemmer=_Stems(), wordnet=wordnet
        )
        for answer, row in zip(answers, references, strict=True)
    ]
    name = METEOR_PLAIN if isinstance(wordnet, _NoSynonyms) else "meteor"
    return {name: mean_over_rows(np.array(scores))}


@cache
def _words(text: str) -> list[str]:
    """Split a text into words by nltk, without its sentence splitter, which needs a download."""
    from nltk.tokenize import word_tokenize

    words: list[str] = word_tokenize(text, preserve_line=True)
    return words


class _NoSynonyms:
    """Replaces WordNet if it is absent: METEOR finds no synonyms."""

    def synsets(self, word: str) -> list[Any]:
        return []


def _wordnet() -> Any:
    """Return nltk's WordNet if it is on this machine. Nothing is fetched."""
    import nltk

    for place in ("corpora/wordnet", "corpora/wordnet.zip"):
        try:
            nltk.data.find(place)
        except LookupError:
            continue
        from nltk.corpus import wordnet

        return wordnet
    return _NoSynonyms()


class _Stems:
    """nltk's Porter stemmer with a cache."""

    def stem(self, word: str) -> str:
        return _stem(word)


@cache
def _stemmer() -> Any:
    from nltk.stem.porter import PorterStemmer

    return PorterStemmer()


@cache
def _stem(word: str) -> str:
    stem: str = _stemmer().stem(word)
    return stem


def _best(score: Callable[[str, str], float], answer: str, rights: Sequence[str]) -> float:
    return max(score(answer, right) for right in rights)


def _word_f1(answer: str, reference: str) -> float:
    """Return the F1 of the shared words (SQuAD, Rajpurkar et al. 2016)."""
    ours, theirs = answer.split(), reference.split()
    shared = sum((Counter(ours) & Counter(theirs)).values())
    return 2 * shared / (len(ours) + len(theirs)) if shared else 0.0

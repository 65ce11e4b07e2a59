"""Chooses golden inputs for a manifest: validation rows that the fusion answers correctly."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serve.fusion.fitting.fit import Targets
from serve.fusion.fused import Answers, Fused, FusedSets
from serve.manifest import Golden
from training.data.images import parted
from training.evaluation.evaluation import Labelled

TOLERANCE = 2.0
"""The tolerance of a golden value, in root mean squared errors on the validation rows."""

LARGEST = 1 << 16
"""The most characters of a golden input. An image has about 4 for each 3 bytes of its file, and a manifest stays
small."""


def golden_input(cell: str, pair: str | None = None) -> str | dict[str, str]:
    """Return a row's input as a manifest has it: a text, a pair of texts, an image, or an image with a text."""
    image, text = parted(cell)
    if image is not None:
        return {"image": image, "text": text} if text else {"image": image}
    return cell if pair is None else {"text": cell, "text_pair": pair}


def golden_cell(given: str | Mapping[Any, str]) -> tuple[str, str]:
    """Return a golden input as a row has it: its input, and the second text of a pair (empty if there is none)."""
    if isinstance(given, str):
        return given, ""
    parts = [part for key in ("image", "text") if (part := given.get(key))]
    return "\n".join(parts), given.get("text_pair", "")


def golden_answers(
    rows: Labelled, truth: Targets, served: Answers, labels: Sequence[str]
) -> list[Golden]:
    """Return the rows whose served answer is right: the label, the set of labels, or a value within one root mean
    squared error of the right one. Very large images are left out."""
    golden = []
    for row in np.flatnonzero(_right(served, truth)).tolist():
        if len(rows.texts[row]) > LARGEST:
            continue
        asked: dict[str, Any] = {
            "input": golden_input(rows.texts[row], rows.pairs[row] if rows.pairs else None)
        }
        if isinstance(served, Fused):
            asked["label"] = labels[int(truth[row])]
        elif isinstance(served, FusedSets):
            asked["labels"] = [labels[place] for place in np.flatnonzero(truth[row]).tolist()]
        else:
            tolerance = max(TOLERANCE * _error(served.values - truth), 1e-6)
            asked |= {"value": float(truth[row]), "tolerance": float(f"{tolerance:.3g}")}
        golden.append(Golden(**asked))
    return golden


def golden_texts(rows: Labelled, written: Sequence[str], max_tokens: int) -> list[Golden]:
    """Return the rows whose written answer is exactly one of the right replies."""
    return [
        Golden(input=text, text=answer, max_tokens=max_tokens)
        for text, answer, right in zip(rows.texts, written, rows.references, strict=True)
        if answer in [each.strip() for each in right]
    ]


def _right(answers: Answers, truth: Targets) -> NDArray[np.bool_]:
    if isinstance(answers, Fused):
        return np.asarray(answers.winners == truth)
    if isinstance(answers, FusedSets):
        return np.asarray((answers.chosen == truth).all(axis=1))
    errors = answers.values - truth
    return np.asarray(np.abs(errors) <= _error(errors))


def _error(errors: NDArray[np.float64]) -> float:
    """Return the root mean squared error."""
    return float(np.sqrt((errors**2).mean()))

"""Which golden inputs an ensemble would answer otherwise with a new member. Replicas refuse to serve it then."""

from collections.abc import Sequence

import numpy as np

from serve.fusion.fused import Answers, Fused, FusedSets
from serve.manifest import Ensemble, Golden
from training.data.images import parted
from training.evaluation.evaluation import Labelled
from training.evaluation.golden_inputs import golden_cell


def wrong_golden(ensemble: Ensemble, rows: Labelled, served: Answers) -> list[str]:
    """Return the golden inputs, in a few words, that `served`, the answers to `rows`, answers otherwise. Golden inputs
    that are not among the rows are left out: nobody knows how they would be answered."""
    pairs = rows.pairs or [""] * len(rows.texts)
    places = {key: place for place, key in enumerate(zip(rows.texts, pairs, strict=True))}
    found = []
    for golden in ensemble.golden:
        cell, pair = golden_cell(golden.input)
        place = places.get((cell, pair))
        if place is not None and not _right(golden, ensemble.labels or [], served, place):
            image, text = parted(cell)
            found.append(text if image is None else f"an image {text}".rstrip())
    return found


def _right(golden: Golden, labels: Sequence[str], served: Answers, place: int) -> bool:
    if isinstance(served, Fused):
        return labels[int(served.winners[place])] == golden.label
    if isinstance(served, FusedSets):
        chosen = {labels[each] for each in np.flatnonzero(served.chosen[place]).tolist()}
        return chosen == set(golden.labels or [])
    assert golden.value is not None, "the manifest was checked"
    assert golden.tolerance is not None, "the manifest was checked"
    return abs(float(served.values[place]) - golden.value) <= golden.tolerance

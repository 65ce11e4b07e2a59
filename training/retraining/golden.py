"""Which golden inputs an ensemble would answer otherwise with a new member. Replicas refuse to serve it then."""

from collections.abc import Sequence

import numpy as np

from serve.fusion.fused import Answers, Fused, FusedSets
from serve.manifest import Ensemble, Golden
from training.evaluation.evaluation import Labelled


def wrong_golden(ensemble: Ensemble, rows: Labelled, served: Answers) -> list[str]:
    """Return the texts of the golden inputs that `served`, the answers to `rows`, answers otherwise. Golden inputs that
    are not among the rows are left out: nobody knows how they would be answered."""
    pairs = rows.pairs or [""] * len(rows.texts)
    places = {key: place for place, key in enumerate(zip(rows.texts, pairs, strict=True))}
    found = []
    for golden in ensemble.golden:
        given = {"text": golden.input} if isinstance(golden.input, str) else golden.input
        place = places.get((given["text"], given.get("text_pair", "")))
        if place is not None and not _right(golden, ensemble.labels or [], served, place):
            found.append(given["text"])
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

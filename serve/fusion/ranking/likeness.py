"""How alike texts are: chrF (Popović 2015), as sacrebleu computes it for a sentence."""

from collections.abc import Sequence

import numpy as np

from serve.fusion.members import Floats


def likeness(texts: Sequence[str]) -> Floats:
    """Returns the sentence chrF, 0..1, of each text [N, N]: row i is text i, judged by every text as the reference. An
    empty text has 0 to every text."""
    from sacrebleu.metrics.chrf import CHRF  # slow to import, and needed by few methods

    metric = CHRF()
    distinct = dict.fromkeys(texts)
    scores = {
        (text, reference): metric.sentence_score(text, [reference]).score / 100
        for text in distinct
        for reference in distinct
    }
    return np.array([[scores[text, reference] for reference in texts] for text in texts])

"""Metrics of multilabel: precision, recall, F1, exact match, log loss."""

import numpy as np
from numpy.typing import NDArray

from serve.fusion.labels.pooling import logs
from training.evaluation.metrics.counts import AVERAGES, KINDS, LabelCounts
from training.evaluation.metrics.resampling import Floats, Metric, mean_over_rows


def multilabel_metrics(
    probabilities: Floats | None, said: NDArray[np.bool_], truth: NDArray[np.bool_]
) -> dict[str, Metric]:
    """Return the metrics of the predicted labels `said` [N, C] against the true labels `truth` [N, C].

    With `probabilities` [N, C], there is also the log loss: the binary cross-entropy in nats, averaged over rows and
    labels.
    """
    counts = LabelCounts(said, truth)
    metrics = {
        f"{average}_{kind}": counts.metric(kind, average) for average in AVERAGES for kind in KINDS
    }
    metrics["exact_match"] = mean_over_rows((said == truth).all(axis=1))
    if probabilities is not None:
        chosen = np.where(truth, probabilities, 1 - probabilities)
        metrics["log_loss"] = mean_over_rows(-logs(chosen).mean(axis=1))
    return metrics

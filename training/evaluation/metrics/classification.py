"""Metrics of classification: accuracy, precision, recall, F1, log loss, calibration."""

import numpy as np
from numpy.typing import NDArray

from serve.fusion.labels.pooling import logs
from training.evaluation.metrics.calibration import calibration_error
from training.evaluation.metrics.counts import LabelCounts
from training.evaluation.metrics.resampling import Floats, Metric, mean_over_rows


def classification_metrics(
    probabilities: Floats | None, winners: NDArray[np.int64], truth: NDArray[np.int64]
) -> dict[str, Metric]:
    """Return the metrics of the label indices `winners` [N] against `truth` [N].

    Micro-averaged precision, recall and F1 all equal the accuracy, so only `micro_f1` is included. With `probabilities`
    [N, C], there are also the log loss (nats) and the expected calibration error of the most probable label.
    """
    labels = int(max(winners.max(), truth.max())) + 1
    counts = LabelCounts(np.eye(labels, dtype=bool)[winners], np.eye(labels, dtype=bool)[truth])
    metrics = {
        "accuracy": mean_over_rows(winners == truth),
        "macro_precision": counts.metric("precision", "macro"),
        "macro_recall": counts.metric("recall", "macro"),
        "macro_f1": counts.metric("f1", "macro"),
        "micro_f1": counts.metric("f1", "micro"),
        "weighted_precision": counts.metric("precision", "weighted"),
        "weighted_recall": counts.metric("recall", "weighted"),
        "weighted_f1": counts.metric("f1", "weighted"),
    }
    if probabilities is not None:
        chosen = probabilities[np.arange(len(truth)), truth]
        metrics["log_loss"] = mean_over_rows(-logs(chosen))
        metrics["ece"] = calibration_error(probabilities.max(axis=1), winners == truth)
    return metrics

"""What rungs are compared by, and which way each metric goes."""

from serve.fusion.labels.rules import Criterion
from serve.manifest import Task

LOWER_IS_BETTER = frozenset({"log_loss", "ece", "rmse", "mae"})

_METRICS: dict[Task, tuple[str, str]] = {
    "classification": ("log_loss", "accuracy"),
    "multilabel": ("log_loss", "micro_f1"),
    "regression": ("rmse", "spearman"),
    "generation": ("bleu", "chrf"),
}
"""The two metrics of each task in which a recommended rung is not significantly worse. The first is the one that a
fusion is fitted by, and the second what its users look at."""


def judged_by(task: Task, criterion: Criterion | None = None) -> tuple[str, str]:
    """Return the metric that rungs are compared by, and the second one in which the recommended rung must not be worse.

    The metric is the `criterion` that the fusion is fitted by, if it is one of the two."""
    first, second = _METRICS[task]
    return (second, first) if criterion == second else (first, second)


def behind(metric: str, value: float, best: float) -> float:
    """Return how far `value` is behind `best`: above 0 is worse."""
    return value - best if metric in LOWER_IS_BETTER else best - value

"""Fit a fusion on what several models predict, and see what it gains: seconds, no GPU, no model.

    python examples/fuse_predictions.py                    # with predictions made up for the example
    python examples/fuse_predictions.py predictions.npz    # with your own

Your file holds what M models say to rows that none of them was trained on, as `numpy.savez` writes it:

    validation        [M, N, C]   probabilities for the rows that the fusion is fitted on
    validation_truth  [N]         the index of each row's right label
    test              [M, K, C]   probabilities for the rows that the table is about
    test_truth        [K]

The code that fits and fuses here is the code that `choir train` fits with and `choir serve` answers with.
"""

import sys

import numpy as np
from numpy.typing import NDArray

from serve.fusion.fitting.fit import fit_fusion
from serve.fusion.fitting.options import FusionOptions
from serve.fusion.fuse import Fusion
from serve.fusion.fused import Fused
from serve.manifest import Ensemble, FusionSpec, Member

Probabilities = NDArray[np.float64]
Labels = NDArray[np.int64]


def made_up() -> dict[str, NDArray[np.generic]]:
    """Four models of five labels that share half of their errors; each has noise of its own, the last one most."""
    rng = np.random.default_rng(0)

    def rows(count: int) -> tuple[Probabilities, Labels]:
        truth = rng.integers(5, size=count)
        shared = 3 * np.eye(5)[truth] + rng.normal(size=(count, 5))
        noise = np.array([1.0, 1.0, 1.2, 2.5])[:, None, None]
        scores = shared + noise * rng.normal(size=(4, count, 5))
        powers = np.exp(scores)
        return powers / powers.sum(axis=-1, keepdims=True), truth

    validation, validation_truth = rows(600)
    test, test_truth = rows(1500)
    return {
        "validation": validation,
        "validation_truth": validation_truth,
        "test": test,
        "test_truth": test_truth,
    }


def draft(members: int, labels: int) -> Ensemble:
    """An ensemble that nothing has been fitted for yet."""
    return Ensemble(
        format=1,
        name="example",
        version=1,
        task="classification",
        labels=[f"label-{number}" for number in range(labels)],
        members=[Member(name=f"model-{number}", adapters=[]) for number in range(members)],
        fusion=FusionSpec(method="average"),
    )


def figures(answers: Fused, truth: Labels, *, shares: bool = False) -> str:
    """Accuracy, and the log loss in nats, which shares of votes have none of."""
    if shares:
        return f"{(answers.winners == truth).mean():10.4f}{'':10}"
    chosen = answers.probabilities[np.arange(len(truth)), truth]
    log_loss = -np.log(np.maximum(chosen, 1e-12)).mean()
    return f"{(answers.winners == truth).mean():10.4f}{log_loss:10.4f}"


def fused(fusion: Fusion, outputs: Probabilities, method: str) -> Fused:
    answers = fusion(outputs, method=method)
    assert isinstance(answers, Fused), "the ensemble's task is classification"
    return answers


def main() -> None:
    data = dict(np.load(sys.argv[1])) if len(sys.argv) > 1 else made_up()
    validation, test = np.asarray(data["validation"], float), np.asarray(data["test"], float)
    truth, test_truth = np.asarray(data["validation_truth"]), np.asarray(data["test_truth"])
    members, rows, labels = validation.shape

    # Each row of validation is judged by a fit on the other four fifths.
    folds = np.random.default_rng(0).permutation(np.arange(rows) % 5)
    options = FusionOptions(method="best", criterion="log_loss")
    fitted = fit_fusion(draft(members, labels), options, validation, truth, folds)
    fusion = Fusion(fitted.ensemble, fitted.parameters)

    print(f"{'':18}{'accuracy':>10}{'log loss':>10}")
    for member, own in zip(fitted.ensemble.members, test, strict=True):
        alone = fusion.alone(own)
        assert isinstance(alone, Fused), "the ensemble's task is classification"
        print(f"{member.name:18}{figures(alone, test_truth)}")
    for method in fusion.methods:
        mark = (
            "  <- chosen on the validation rows" if method == fitted.ensemble.fusion.method else ""
        )
        print(
            f"{method:18}{figures(fused(fusion, test, method), test_truth, shares=method == 'vote')}{mark}"
        )

    weights = {member.name: round(member.weight or 0.0, 3) for member in fitted.ensemble.members}
    print(f"\nweights: {weights}")
    print(
        f"fusion of the manifest: {fitted.ensemble.fusion.model_dump_json(exclude_defaults=True)}"
    )


if __name__ == "__main__":
    main()

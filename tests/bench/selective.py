"""What early exit saves and abstaining leaves out, on validation rows that they were not fitted on.

`python -m tests.bench.selective BUNDLE --ensemble NAME` halves the validation rows that a bundle stores many times,
fits on one half, and counts on the other one. No model is loaded, and the test rows are not read."""

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from serve.bundle import Bundle
from serve.fusion.asking.asking import asked_offline
from serve.fusion.asking.choice import asking_for
from serve.fusion.fitting.fit import fit_fusion
from serve.fusion.fitting.options import FusionOptions
from serve.fusion.fuse import Fusion
from serve.fusion.fused import Fused
from serve.fusion.selective.abstain import certainty
from serve.manifest import Abstain, EarlyExit, Ensemble

HALVES = 40
RISKS = (0.01, 0.02, 0.05)
AVERAGE = FusionOptions(method="average", candidates=["average"])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.selective", description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--ensemble", required=True)
    given = parser.parse_args()
    bundle = Bundle.open(given.bundle)
    ensemble = bundle.ensemble(given.ensemble)
    stored = bundle.validation_scores(given.ensemble)
    rows = stored.rows()
    assert rows is not None, "the bundle stores what its members say to the validation rows"
    said = [stored.outputs(member, rows.header.rows) for member in ensemble.members]
    outputs = np.stack([each for each in said if each is not None])
    truth = np.asarray(rows.truth, dtype=np.int64)
    draft = ensemble.model_copy(update={"scores": {}})
    rng = np.random.default_rng(0)
    found = []
    for _ in range(HALVES):
        order = rng.permutation(len(truth))
        half = len(order) // 2
        found.append(_counted(draft, outputs, truth, order[:half], order[half:]))
    mean, most = np.mean(found, axis=0), np.max(found, axis=0)
    print(f"{HALVES} halves of {len(truth)} validation rows, average of {len(outputs)} members")
    for place, risk in enumerate(RISKS):
        passes, changed, lost, coverage, wrong = mean[place]
        print(
            f"risk {risk:.2f}: early exit asks {passes:.2f} members, {changed:.2%} of the answers change (at most "
            f"{most[place][1]:.2%}), accuracy {-lost:+.2%}; abstaining covers {coverage:.1%}, {wrong:.2%} wrong "
            f"(at most {most[place][4]:.2%})"
        )


def _counted(
    draft: Ensemble,
    outputs: NDArray[np.float64],
    truth: NDArray[np.int64],
    fitted_on: NDArray[np.int64],
    new: NDArray[np.int64],
) -> NDArray[np.float64]:
    """Return for each risk: members asked, share of changed answers, accuracy lost, coverage, and share of wrong
    answers among those that do not abstain."""
    folds = np.arange(len(fitted_on)) % 5
    fitted = fit_fusion(draft, AVERAGE, outputs[:, fitted_on], truth[fitted_on], folds)
    fusion, said, known = Fusion(fitted.ensemble), outputs[:, new], truth[new]
    full = fusion(said)
    assert isinstance(full, Fused)
    right = full.winners == known
    lines = []
    for risk in RISKS:
        asking = asking_for(fusion, len(new), early_exit=EarlyExit(risk=risk))
        early = asked_offline(asking, said)
        assert isinstance(early, Fused)
        least = fusion.selective.abstain(Abstain(risk=risk), EarlyExit(risk=0), own=True)
        assert least is not None, "abstaining was asked for"
        kept = certainty(full) >= least
        lines.append(
            [
                asking.asked.sum(axis=0).mean(),
                np.mean(early.winners != full.winners),
                right.mean() - np.mean(early.winners == known),
                kept.mean(),
                np.mean(~right[kept]) if kept.any() else 0.0,
            ]
        )
    return np.array(lines)


if __name__ == "__main__":
    main()

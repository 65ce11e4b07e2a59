"""What early exit saves and abstaining leaves out, on validation rows that they were not fitted on.

`python -m tests.bench.selective BUNDLE --ensemble NAME` halves the validation rows that a bundle stores many times,
fits on one half, and counts on the other one. No model is loaded, and the test rows are not read.

With `--test` it fits on all validation rows instead, asks the members about the recipe's test rows, and counts there.
That is one draw of what is served."""

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
from training.evaluation.evaluation import rows_to_judge
from training.execution.run import recorded_recipe
from training.offline.members import OfflineMembers

HALVES = 40
RISKS = (0.01, 0.02, 0.05)
AVERAGE = FusionOptions(method="average", candidates=["average"])

Rows = tuple[NDArray[np.float64], NDArray[np.int64]]
"""Members' outputs [members, rows, labels], and the right labels [rows]."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.selective", description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--ensemble", required=True)
    parser.add_argument("--test", action="store_true", help="count on the recipe's test rows")
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
    if given.test:
        recipe = recorded_recipe(bundle.path)
        assert recipe is not None, "the bundle says which recipe made it"
        judged, _ = rows_to_judge(bundle, ensemble, recipe, recipe.find(ensemble.name), None)
        new = OfflineMembers(bundle, ensemble).outputs(judged.texts)
        known = np.asarray(judged.targets(ensemble), dtype=np.int64)
        print(f"{len(known)} test rows, fitted on {len(truth)} validation rows")
        show(np.array([_counted(draft, (outputs, truth), (new, known))]))
        return
    rng = np.random.default_rng(0)
    found = []
    for _ in range(HALVES):
        order = rng.permutation(len(truth))
        one, other = np.array_split(order, 2)
        found.append(
            _counted(draft, (outputs[:, one], truth[one]), (outputs[:, other], truth[other]))
        )
    print(f"{HALVES} halves of {len(truth)} validation rows, average of {len(outputs)} members")
    show(np.array(found))


def show(found: NDArray[np.float64]) -> None:
    """Print a line for each risk, of figures [draws, risks, five]: their means, and the largest shares."""
    mean, most = found.mean(axis=0), found.max(axis=0)
    for place, risk in enumerate(RISKS):
        passes, changed, lost, coverage, wrong = mean[place]
        print(
            f"risk {risk:.2f}: early exit asks {passes:.2f} members, {changed:.2%} of the answers change (at most "
            f"{most[place][1]:.2%}), accuracy {-lost:+.2%}; abstaining covers {coverage:.1%}, {wrong:.2%} wrong "
            f"(at most {most[place][4]:.2%})"
        )


def _counted(draft: Ensemble, fitted_on: Rows, counted_on: Rows) -> NDArray[np.float64]:
    """Return for each risk: members asked, share of changed answers, accuracy lost, coverage, and share of wrong
    answers among those that do not abstain."""
    outputs, truth = fitted_on
    fitted = fit_fusion(draft, AVERAGE, outputs, truth, np.arange(len(truth)) % 5)
    fusion = Fusion(fitted.ensemble)
    said, known = counted_on
    full = fusion(said)
    assert isinstance(full, Fused)
    right = full.winners == known
    lines = []
    for risk in RISKS:
        asking = asking_for(fusion, len(known), early_exit=EarlyExit(risk=risk))
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

"""What early exit saves and abstaining leaves out, on validation rows that they were not fitted on; and by which score
abstaining leaves out least.

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
from serve.fusion.selective.abstain import certainty, fit_abstain
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
    for name, figures in _by_score(draft, outputs, truth).items():
        area, coverage, wrong = figures
        print(
            f"abstaining by {name}: area under risk and coverage {area:.5f}; at risk 0.05 it covers {coverage:.1%}, "
            f"{wrong:.2%} wrong"
        )


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


def _scores(answers: Fused) -> dict[str, NDArray[np.float64]]:
    """Return how sure answers are [N], 0..1, by each score that an answer has."""
    ordered = np.sort(answers.probabilities, axis=1)
    return {
        "the answer's probability": ordered[:, -1],
        "its lead": ordered[:, -1] - ordered[:, -2],
        "entropy": np.exp(-answers.entropy),
        "disagreement": np.exp(-answers.disagreement),
    }


def _by_score(
    draft: Ensemble, outputs: NDArray[np.float64], truth: NDArray[np.int64]
) -> dict[str, NDArray[np.float64]]:
    """Return for each score, in the mean of the halves: the area under risk and coverage, and at a risk of 0.05 the
    coverage and the share of wrong answers."""
    rng = np.random.default_rng(0)
    found: dict[str, list[list[float]]] = {}
    for _ in range(HALVES):
        order = rng.permutation(len(truth))
        known, new = np.array_split(order, 2)
        folds = np.arange(len(known)) % 5
        fitted = fit_fusion(draft, AVERAGE, outputs[:, known], truth[known], folds)
        seen, fresh = fitted.validation["average"], Fusion(fitted.ensemble)(outputs[:, new])
        assert isinstance(seen, Fused)
        assert isinstance(fresh, Fused)
        wrong = fresh.winners != truth[new]
        fits, asked = _scores(seen), _scores(fresh)
        for name, sure in asked.items():
            least = fit_abstain(fits[name], seen.winners != truth[known]).threshold(0.05, 0.95)
            given = sure >= least
            sorted_ = wrong[np.argsort(-sure, kind="stable")]
            area = (np.cumsum(sorted_) / np.arange(1, len(sorted_) + 1)).mean()
            share = wrong[given].mean() if given.any() else 0.0
            found.setdefault(name, []).append([area, given.mean(), share])
    return {name: np.mean(lines, axis=0) for name, lines in found.items()}


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

"""The figures of members, of their fusion and of rungs on the same test rows, each with a temperature of its own."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import permutation_test

from serve.bundle import Bundle
from serve.fusion.fitting.fit import Targets
from serve.fusion.labels.temperature import fit_temperature, temper
from serve.manifest import Ensemble
from training.leaderboard.rungs import read_rungs
from training.offline.members import OfflineMembers

Floats = NDArray[np.float64]

RESAMPLES = 9999
"""Sign flips of the paired differences (Fisher's randomisation test)."""


@dataclass(frozen=True)
class Judged:
    """What systems answered to the same test rows."""

    right: Mapping[str, Floats]
    """System -> whether each row's label is right [N], 0 or 1."""
    losses: Mapping[str, Floats]
    """System -> the log loss of each row [N], in nats."""
    members: Sequence[str]
    best: str
    """The member with the lowest log loss on the validation rows."""
    validation: Mapping[str, float]
    """System -> its mean log loss on the validation rows."""


def judged(bundle: Bundle, name: str, texts: Sequence[str], answers: Sequence[str]) -> Judged:
    """Judge the members of an ensemble, their average, and the bundle's rungs. Temperatures are fitted on the stored
    validation rows."""
    ensemble = bundle.ensemble(name)
    labels = ensemble.labels or []
    truth = np.array([labels.index(answer) for answer in answers])
    own = {member.name: member for member in ensemble.members}
    own |= {rung.name: rung.manifest.members[0] for rung in read_rungs(bundle, name)}
    known, validation = _validation(
        bundle, ensemble.model_copy(update={"members": [*own.values()]})
    )
    everybody = ensemble.model_copy(
        update={"members": [each.model_copy(update={"name": name}) for name, each in own.items()]}
    )
    test = OfflineMembers(bundle, everybody).outputs(texts)
    count = len(ensemble.members)
    systems = {name: (validation[place], test[place]) for place, name in enumerate(own)}
    systems["average"] = (validation[:count].mean(axis=0), test[:count].mean(axis=0))
    right, losses, on_validation = {}, {}, {}
    for system, (fitted_on, found) in systems.items():
        temperature = fit_temperature(fitted_on, known)
        tempered = temper(found, temperature)
        right[system] = (tempered.argmax(axis=1) == truth).astype(np.float64)
        losses[system] = _losses(tempered, truth)
        on_validation[system] = float(_losses(temper(fitted_on, temperature), known).mean())
    names = [member.name for member in ensemble.members]
    best = min(names, key=on_validation.__getitem__)
    return Judged(right, losses, names, best, on_validation)


def show(title: str, draws: Sequence[Judged]) -> None:
    """Print the mean figures over `draws`, and the average's lead over others, paired over the test rows. With several
    draws, a row's figure is its mean over the draws, so that a row counts once."""
    print(
        f"\n{title}: accuracy and log loss on {len(next(iter(draws[0].right.values())))} test rows"
    )
    for system in draws[0].right:
        right = [float(draw.right[system].mean()) for draw in draws]
        losses = [float(draw.losses[system].mean()) for draw in draws]
        each = f"  ({', '.join(f'{value:.4f}' for value in right)})" if len(draws) > 1 else ""
        print(f"  {system:12} {np.mean(right):.4f}  {np.mean(losses):.4f}{each}")
    others = {"best member by validation": [draw.best for draw in draws]}
    others["best member on the test rows"] = [
        max(draw.members, key=lambda name, draw=draw: float(draw.right[name].mean()))  # type: ignore[misc]
        for draw in draws
    ]
    for rung in draws[0].right:
        if rung not in (*draws[0].members, "average"):
            others[rung] = [rung] * len(draws)
    for over, names in others.items():
        pairs = list(zip(draws, names, strict=True))
        more = np.mean([draw.right["average"] - draw.right[name] for draw, name in pairs], axis=0)
        less = np.mean([draw.losses[name] - draw.losses["average"] for draw, name in pairs], axis=0)
        print(f"  average over the {over}: accuracy {lead(more)}; log loss lower by {lead(less)}")


def lead(differences: Floats) -> str:
    """Describe the mean of paired differences [N], with its standard error and p."""
    found = permutation_test(
        (differences, np.zeros_like(differences)),
        lambda one, other, axis: (one - other).mean(axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=500,
        rng=np.random.default_rng(0),
    )
    error = differences.std(ddof=1) / np.sqrt(len(differences))
    return f"{differences.mean():+.4f} (standard error {error:.4f}, p = {found.pvalue:.4f})"


def _validation(bundle: Bundle, ensemble: Ensemble) -> tuple[Targets, Floats]:
    """Return the right answers of the stored validation rows, and the outputs of all members for them [M, N, C]."""
    stored = bundle.validation_scores(ensemble.name)
    rows = stored.rows()
    assert rows is not None, "training stores them"
    outputs = [stored.outputs(member, rows.header.rows) for member in ensemble.members]
    return rows.truth, np.stack([each for each in outputs if each is not None])


def _losses(probabilities: Floats, truth: Targets) -> Floats:
    rows = np.arange(len(truth))
    losses: Floats = -np.log(np.maximum(probabilities[rows, truth.astype(np.int64)], 1e-15))
    return losses

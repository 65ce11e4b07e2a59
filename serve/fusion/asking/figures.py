"""What early exit saves and abstaining leaves out, on rows whose right answers are known."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from serve.fusion.asking.asking import asked_offline
from serve.fusion.asking.rounds import Rounds
from serve.fusion.fuse import Fusion
from serve.fusion.fused import Fused
from serve.fusion.members import Floats, Ints
from serve.fusion.selective.abstain import certainty
from serve.manifest import Abstain, EarlyExit


@dataclass(frozen=True)
class ExitFigures:
    """What early exit does on N rows."""

    passes: float
    """The mean number of members asked."""
    saved: float
    """The share of the members' passes that is saved, 0..1."""
    changed: float
    """The share of the answers that differ from those of all members; this is what `risk` bounds."""
    accuracy: float
    full_accuracy: float
    """That of all members' answers."""


@dataclass(frozen=True)
class AbstainFigures:
    """What abstaining does on N rows."""

    coverage: float
    """The share of the answers that do not abstain."""
    risk: float
    """How many of these are wrong; 0 if all abstain."""


def exit_figures(
    fusion: Fusion, outputs: Floats, truth: Ints, early_exit: EarlyExit
) -> ExitFigures:
    """Returns the figures of early exit at a risk, from the members' outputs [M, N, C] and the right labels [N]. Raises
    FusionError if the ensemble has no fit of it."""
    chosen = fusion.selective.exit(early_exit, own=True)
    assert chosen is not None, "early exit was asked for"
    rounds = Rounds(fusion, *chosen, len(truth))
    early, full = asked_offline(rounds, outputs), fusion(outputs)
    assert isinstance(early, Fused)
    assert isinstance(full, Fused)
    return ExitFigures(
        passes=float(rounds.asked.sum(axis=0).mean()),
        saved=float(1 - rounds.asked.mean()),
        changed=float(np.mean(early.winners != full.winners)),
        accuracy=float(np.mean(early.winners == truth)),
        full_accuracy=float(np.mean(full.winners == truth)),
    )


def abstain_figures(
    fusion: Fusion, answers: Fused, truth: Ints, abstain: Abstain
) -> AbstainFigures:
    """Returns the figures of abstaining at a risk, for answers of all members. Raises FusionError if the ensemble has
    no fit of it."""
    least = fusion.selective.abstain(abstain, EarlyExit(risk=0), own=True)
    assert least is not None, "abstaining was asked for"
    kept = certainty(answers) >= least
    wrong = answers.winners != truth
    return AbstainFigures(
        coverage=float(kept.mean()), risk=float(wrong[kept].mean()) if kept.any() else 0.0
    )


def risk_coverage(sure: Floats, wrong: NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """Returns the curve of risk against coverage: for k = 1..N, the share k/N of the surest answers, and how many of
    them are wrong. `sure` [N] is `certainty`."""
    order = np.argsort(-sure, kind="stable")
    count = np.arange(1, len(order) + 1)
    return count / len(order), np.cumsum(wrong[order]) / count

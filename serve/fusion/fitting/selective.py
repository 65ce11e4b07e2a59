"""Fits early exit and abstaining to validation rows."""

import numpy as np

from serve.fusion.asking.asking import asked_offline
from serve.fusion.asking.rounds import Rounds, stage
from serve.fusion.fuse import Fusion
from serve.fusion.fused import Fused
from serve.fusion.labels.measures import log_loss
from serve.fusion.members import Floats, Ints
from serve.fusion.selective.abstain import certainty, fit_abstain
from serve.fusion.selective.early_exit import ExitFit, fit_exit
from serve.fusion.selective.record import SelectiveFit, digests, numbers_digest, without_fit
from serve.manifest import PREFIX_METHODS, Ensemble


def with_selective(ensemble: Ensemble, outputs: Floats, truth: Ints, answers: Fused) -> Ensemble:
    """Returns the manifest with fits of early exit and abstaining, for its own method, weights and temperature.

    `outputs` [M, N, C] and `truth` [N] are those of the validation rows; `answers` are the answers of all members to
    them, by fits that have not seen them."""
    exit_fit = None
    abstain = [fit_abstain(certainty(answers), answers.winners != truth)]
    if ensemble.fusion.method in PREFIX_METHODS:
        fusion = Fusion(plain(ensemble))
        order = _order(fusion, outputs, truth)
        exit_fit = _exit_fit(fusion, order, outputs)
        if (early := ensemble.fusion.early_exit) is not None:
            threshold = exit_fit.threshold(early.risk)
            stopped = asked_offline(Rounds(fusion, order, threshold, len(truth)), outputs)
            assert isinstance(stopped, Fused)
            wrong = stopped.winners != truth
            abstain.append(fit_abstain(certainty(stopped), wrong, early.risk))
    fit = SelectiveFit(
        digests=digests(ensemble),
        numbers=numbers_digest(ensemble),
        early_exit=exit_fit,
        abstain=tuple(abstain),
    )
    return fit.written(ensemble)


def plain(ensemble: Ensemble) -> Ensemble:
    """Returns the manifest without early exit and abstaining, which need a fit."""
    spec = ensemble.fusion.model_copy(update={"early_exit": None, "abstain": None})
    return without_fit(ensemble.model_copy(update={"fusion": spec}))


def _order(fusion: Fusion, outputs: Floats, truth: Ints) -> Ints:
    """Returns the places of the members that have a weight, the one with the lowest log loss first."""
    losses = np.array([log_loss(own, truth) for own in outputs])
    weights = fusion.weights_of(np.arange(len(outputs)))
    order = np.argsort(losses, kind="stable")
    return np.asarray(order[weights[order] > 0])


def _exit_fit(fusion: Fusion, order: Ints, outputs: Floats) -> ExitFit:
    stages = [stage(fusion, order[: asked + 1], outputs) for asked in range(len(order))]
    return fit_exit(
        [fusion.ensemble.members[place].name for place in order],
        np.stack([sure for _, sure in stages]),
        np.stack([fused.winners for fused, _ in stages]),
    )

"""What abstaining would leave: how many answers are given, and how many of those are wrong."""

import numpy as np
from numpy.typing import NDArray

from serve.fusion.fitting.fit import Targets
from serve.fusion.fused import Answers, Fused
from serve.fusion.selective.abstain import certainty
from serve.fusion.selective.choice import Selective
from serve.fusion.selective.record import SelectiveFit
from serve.manifest import Abstain, Ensemble
from training.evaluation.metrics.resampling import Floats, Metric, mean_over_rows, ratio

USUAL = Abstain(risk=0.02)
"""The bound that figures are for, unless the recipe or the manifest gives one."""


def given_answers(
    ensemble: Ensemble, answers: Answers, abstain: Abstain
) -> NDArray[np.bool_] | None:
    """Return which of the answers [N] would not abstain, by the fit in the manifest; None for a task that does not
    abstain, or a manifest without a fit."""
    fit = SelectiveFit.of(ensemble)
    if not isinstance(answers, Fused) or fit is None or not fit.abstain:
        return None
    least = Selective(ensemble).abstain(abstain, None, own=True)
    assert least is not None, "abstaining was asked for"
    return np.asarray(certainty(answers) >= least)


def abstaining_metrics(
    answers: Answers, truth: Targets, given: NDArray[np.bool_] | None
) -> dict[str, Metric]:
    """Return the metrics `coverage`, the share of answers that are given, and `risk`, the share of those that are wrong
    (0 where none is given); nothing without `given` [N]."""
    if given is None or not isinstance(answers, Fused):
        return {}
    wrong = given & (answers.winners != truth)

    def risk(times: Floats) -> Floats:
        return ratio(times @ wrong.astype(np.float64), times @ given.astype(np.float64))

    return {"coverage": mean_over_rows(given), "risk": risk}

"""Figures of early exit and abstaining, counted by hand."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from serve.fusion.asking.figures import abstain_figures, exit_figures, risk_coverage
from serve.fusion.fitting.fit import fit_fusion
from serve.fusion.fitting.options import FusionOptions
from serve.fusion.fuse import Fusion
from serve.fusion.fused import Fused
from serve.manifest import Abstain, EarlyExit

Make = Callable[..., Any]


def test_figures_of_new_rows(make_ensemble: Make, noisy: Make) -> None:
    outputs, truth = noisy(3, 1600, 8, (1.8, 2.4, 2.0))
    options = FusionOptions(method="average", candidates=["average"], temperature=False)
    draft = make_ensemble((None,) * 3, labels=tuple("abcdefgh"))
    fitted = fit_fusion(draft, options, outputs[:, :800], truth[:800], np.arange(800) % 5)
    fusion, new, known = Fusion(fitted.ensemble), outputs[:, 800:], truth[800:]
    found = exit_figures(fusion, new, known, EarlyExit(risk=0.05))
    full = new.mean(axis=0).argmax(axis=1)
    assert found.full_accuracy == pytest.approx(np.mean(full == known))
    assert found.saved == pytest.approx(1 - found.passes / 3)
    assert 0.1 < found.saved < 0.67
    assert 0 < found.changed <= 0.05
    assert abs(found.accuracy - found.full_accuracy) <= found.changed
    none = exit_figures(fusion, new, known, EarlyExit(risk=0))
    assert (none.passes, none.saved, none.changed) == (3, 0, 0)
    answers = fusion(new)
    assert isinstance(answers, Fused)
    left = abstain_figures(fusion, answers, known, Abstain(risk=0.02))
    surest = np.argsort(-new.mean(axis=0).max(axis=1))[: round(left.coverage * 800)]
    assert left.risk == pytest.approx(np.mean(full[surest] != known[surest]))
    assert abstain_figures(fusion, answers, known, Abstain(risk=1)).coverage == 1
    nothing = abstain_figures(fusion, answers, known, Abstain(risk=0))
    assert (nothing.coverage, nothing.risk) == (0, 0)


def test_the_curve_of_risk_against_coverage() -> None:
    sure = np.array([0.2, 0.9, 0.5, 0.7])
    coverage, risk = risk_coverage(sure, np.array([True, False, True, False]))
    assert coverage.tolist() == [0.25, 0.5, 0.75, 1]
    assert risk.tolist() == [0, 0, pytest.approx(1 / 3), 0.5]

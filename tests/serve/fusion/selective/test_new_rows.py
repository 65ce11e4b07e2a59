"""What was fitted on some rows keeps its promise on others, counted by hand."""

from collections.abc import Callable
from typing import Any

import numpy as np

from serve.fusion.asking.asking import asked_offline
from serve.fusion.asking.choice import asking_for
from serve.fusion.fitting.fit import fit_fusion
from serve.fusion.fitting.options import FusionOptions
from serve.fusion.fuse import Fusion
from serve.fusion.fused import Fused
from serve.manifest import EarlyExit

Make = Callable[..., Any]


def test_early_exit_saves_passes_and_keeps_its_risk(make_ensemble: Make, noisy: Make) -> None:
    outputs, truth = noisy(3, 1600, 8, (1.8, 2.4, 2.0))
    options = FusionOptions(method="average", candidates=["average"], temperature=False)
    draft = make_ensemble((None,) * 3, labels=tuple("abcdefgh"))
    fitted = fit_fusion(draft, options, outputs[:, :800], truth[:800], np.arange(800) % 5)
    fusion, new = Fusion(fitted.ensemble), outputs[:, 800:]
    full = new.mean(axis=0).argmax(axis=1)
    passes = {}
    for risk in (0.05, 0):
        asking = asking_for(fusion, 800, early_exit=EarlyExit(risk=risk))
        early = asked_offline(asking, new)
        assert isinstance(early, Fused)
        assert np.mean(early.winners != full) <= risk
        passes[risk] = asking.asked.sum(axis=0).mean()
    assert 1 < passes[0.05] < 2.7
    assert passes[0] == 3

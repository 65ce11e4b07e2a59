"""Compares the answers of active versions with those to their validation rows, once clients have them."""

from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic

from serve.agents.routes import Target
from serve.engine.interface import Prediction
from serve.fusion.drift.baseline import Baseline
from serve.fusion.drift.figures import AnswerFigures
from serve.fusion.drift.window import Window
from serve.watching import drift

EVERY_SECONDS = 1.0
"""How often the index of an ensemble is computed at most."""


@dataclass
class _Watched:
    """The version of an ensemble that is watched."""

    version: int
    window: Window | None
    """None if the version has no baseline."""
    shown_at: float = 0.0


class DriftWatch:
    """One gateway's windows, one for each ensemble. A version that becomes active begins with an empty one."""

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._watched: dict[str, _Watched] = {}

    def seen(self, target: Target, prediction: Prediction) -> None:
        """Take an answer that the manifest's own fusion gave. It counts if the active version gave it."""
        if target.track != "stable" or target.member is not None:
            return
        figures = AnswerFigures.of(prediction.answers, prediction.agreement)
        watched = self._of(target)
        if figures is None or watched.window is None:
            return
        watched.window.add(figures)
        at = self._clock()
        if at - watched.shown_at >= EVERY_SECONDS:
            watched.shown_at = at
            window = watched.window
            drift.drift_seen(target.ensemble.name, window.answers, window.psi())

    def _of(self, target: Target) -> _Watched:
        ensemble = target.ensemble
        known = self._watched.get(ensemble.name)
        if known is None or known.version != ensemble.version:
            baseline = Baseline.of(ensemble)
            labels = tuple(ensemble.labels or ())
            window = None if baseline is None else Window(baseline, labels)
            known = self._watched[ensemble.name] = _Watched(ensemble.version, window)
            drift.drift_forgotten(ensemble.name)
        return known

"""The one way from member probabilities to an answer, for serving and training alike."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from numpy.typing import ArrayLike

from serve.fusion.errors import FusionError, StaleFusionError
from serve.fusion.measures import disagreement, entropy
from serve.fusion.members import Floats, Ints, check_probabilities, check_weights
from serve.fusion.pooling import pool, uniform
from serve.fusion.stack import Stack
from serve.fusion.temperature import temper
from serve.fusion.vote import vote
from serve.manifest import Ensemble, Method

__all__ = ["Fused", "Fusion", "FusionError", "StaleFusionError"]

WEIGHTED: tuple[Method, ...] = ("weighted_average", "vote")
"""The methods that read weights."""


@dataclass(frozen=True)
class Fused:
    """The answers to N rows over C labels."""

    probabilities: Floats
    """[N, C], rows summing to 1; shares of the votes for `vote`."""
    entropy: Floats
    """[N] of `probabilities`, in nats."""
    disagreement: Floats
    """[N] mutual information of the members, in nats, before temperature."""
    winners: Ints
    """[N] index of the answered label: the most probable one, or by the tie rule of `vote`."""


class Fusion:
    """How the members of one ensemble become one answer.

    `stale` says that a stacker is in use that was fitted on other adapters, because the caller
    allowed that."""

    def __init__(
        self, ensemble: Ensemble, stack: Stack | None = None, *, allow_stale: bool = False
    ) -> None:
        """Raises FusionError for an ensemble that is not served yet or a stacker that does not fit
        it, and StaleFusionError for the method `stack` with a stacker that was fitted on other
        adapters."""
        if ensemble.task != "classification" or ensemble.labels is None:
            raise FusionError(
                f"Labels are fused for classification; {ensemble.task} is not served by it yet."
            )
        self._ensemble = ensemble
        self._labels = ensemble.labels
        self._members = [member.name for member in ensemble.members]
        self._weights = dict(zip(self._members, ensemble.weights(), strict=True))
        changed = stack.changed_members(ensemble) if stack else []
        if changed and not allow_stale and ensemble.fusion.method == "stack":
            raise StaleFusionError(
                f"The stacker of {ensemble.id} was fitted on other adapters than those of "
                f"{', '.join(changed)}: "
                "fit it again, choose another method, or allow it with allow_stale_fusion."
            )
        self.stale = bool(changed) and allow_stale
        self._stack = None if changed and not allow_stale else stack

    @classmethod
    def from_manifest(
        cls, ensemble: Ensemble, parameters: Path | None, *, allow_stale: bool = False
    ) -> "Fusion":
        """With the fitted parameters in the file `parameters`, if the manifest names any.

        A stacker that was fitted on other adapters raises StaleFusionError if the manifest's method
        is `stack`, and is left out if the stacker is only offered to requests, unless
        `allow_stale`. Raises FusionError as the constructor."""
        model = ensemble.fusion.model
        if model == "gradient_boosting":
            raise FusionError(
                "Stacking by gradient boosting is not served yet; use logistic_regression."
            )
        if model is not None and parameters is None:
            raise FusionError(
                f"{ensemble.id} names fitted parameters, but their file was not given."
            )
        stack = Stack.read(parameters) if parameters is not None and model is not None else None
        return cls(ensemble, stack, allow_stale=allow_stale)

    @property
    def methods(self) -> tuple[Method, ...]:
        """What a request may choose."""
        offered: tuple[Method, ...] = ("average", "weighted_average", "vote")
        return (*offered, "stack") if self._stack else offered

    def __call__(
        self,
        probabilities: ArrayLike,
        *,
        method: str | None = None,
        weights: Mapping[str, float] | None = None,
    ) -> Fused:
        """Fuse probabilities [M, N, C], members in the manifest's order.

        `method` and `weights` (one a member, by name) are the request's, and replace the
        manifest's. The temperature is applied only to the manifest's method, which it was fitted
        with. Raises FusionError."""
        own = self._ensemble.fusion
        chosen = self._choose(method)
        values = self._choose_weights(chosen, weights)
        members = check_probabilities(probabilities, self._members, len(self._labels))
        if chosen == "vote":
            fused, winners = vote(members, values, self._labels)
        else:
            if chosen == "stack":
                assert self._stack is not None, "it is among the methods only if it was fitted"
                fused = self._stack.predict(members)
            else:
                fused = pool(members, values, own.space)
            winners = fused.argmax(axis=1)
        if chosen == own.method:
            fused = temper(fused, own.temperature)
        return Fused(fused, entropy(fused), disagreement(members, values), winners)

    def _choose(self, method: str | None) -> Method:
        wanted = method or self._ensemble.fusion.method
        for known in self.methods:
            if wanted == known:
                return known
        possible = ", ".join(self.methods)
        if wanted == "stack":
            raise FusionError(
                f"{self._ensemble.id} has no stacker that was fitted on its adapters; possible: "
                f"{possible}."
            )
        what = "is not for classification" if wanted in get_args(Method) else "is not known"
        raise FusionError(f"The fusion method {wanted!r} {what}; possible: {possible}.")

    def _choose_weights(self, method: Method, weights: Mapping[str, float] | None) -> Floats:
        """[M], uniform for a method without weights."""
        if method in WEIGHTED:
            return check_weights(self._weights if weights is None else weights, self._members)
        if weights is not None:
            raise FusionError(f"'weights' is not for {method}; choose {' or '.join(WEIGHTED)}.")
        return uniform(len(self._members))

"""The one way from what members say to an answer, for serving and training alike."""

from collections.abc import Mapping
from pathlib import Path
from typing import get_args

import numpy as np
from numpy.typing import ArrayLike

from serve.fusion.errors import FusionError, OutputError, StaleFusionError
from serve.fusion.fused import Answers
from serve.fusion.labels.pooling import uniform
from serve.fusion.labels.tasks import rules_of
from serve.fusion.labels.temperature import temper
from serve.fusion.members import Floats, check_weights
from serve.fusion.stack import Stack, read_stack
from serve.manifest import METHODS, Ensemble, Method

WEIGHTED: tuple[Method, ...] = ("weighted_average", "vote")
"""The methods that read weights."""


class Fusion:
    """How the members of one ensemble become one answer: `Fused` for classification, `FusedSets` for multilabel,
    `FusedValues` for regression.

    `stale` says that a stacker is in use that was fitted on other adapters, because the caller
    allowed that."""

    def __init__(
        self, ensemble: Ensemble, stack: Stack | None = None, *, allow_stale: bool = False
    ) -> None:
        """Raises FusionError for the task generation or a stacker that does not fit the ensemble, and StaleFusionError
        for the method `stack` with a stacker that was fitted on other adapters."""
        self._ensemble = ensemble
        self._rules = rules_of(ensemble)
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
        if model is None:
            return cls(ensemble, allow_stale=allow_stale)
        if parameters is None:
            raise FusionError(
                f"{ensemble.id} names fitted parameters, but their file was not given."
            )
        return cls(ensemble, read_stack(parameters, model), allow_stale=allow_stale)

    @property
    def methods(self) -> tuple[Method, ...]:
        """What a request may choose."""
        known = METHODS[self._ensemble.task]
        return tuple(method for method in known if method != "stack" or self._stack)

    def __call__(
        self,
        outputs: ArrayLike,
        *,
        method: str | None = None,
        weights: Mapping[str, float] | None = None,
    ) -> Answers:
        """Fuse probabilities [M, N, C] or values [M, N], members in the manifest's order.

        `method` and `weights` (one a member, by name) are the request's, and replace the
        manifest's. The temperature is applied only to the manifest's method, which it was fitted
        with. Raises FusionError for what is asked for, and OutputError for what the members or
        the stacker say."""
        own = self._ensemble.fusion
        chosen = self._choose(method)
        values = self._choose_weights(chosen, weights)
        members = self._rules.check(outputs, self._members)
        if chosen == "vote":
            return self._rules.vote(members, values)
        if chosen == "stack":
            assert self._stack is not None, "it is among the methods only if it was fitted"
            fused = self._rules.from_scores(self._stack.scores(self._rules.evidence(members)))
        else:
            fused = self._rules.pool(members, values, own.space)
        if chosen == own.method and own.temperature != 1:
            fused = temper(fused, own.temperature)
        self._refuse_unsound(fused)
        return self._rules.answer(fused, members, values)

    def alone(self, output: ArrayLike, name: str = "alone") -> Answers:
        """What the member `name` answers by itself, from its probabilities [N, C] or values [N]. Raises OutputError."""
        members = self._rules.check(np.asarray(output)[np.newaxis], [name])
        return self._rules.answer(members[0], members, uniform(1))

    def _refuse_unsound(self, fused: Floats) -> None:
        """A stacker's coefficients may be too large for what the members say."""
        sound = np.isfinite(fused)
        if not sound.all():
            row = int(np.argwhere(~sound)[0][0])
            raise OutputError(
                f"The fusion of {self._ensemble.id} is not finite (NaN or infinite) in row {row}."
            )

    def _choose(self, method: str | None) -> Method:
        wanted = method or self._ensemble.fusion.method
        for each in self.methods:
            if wanted == each:
                return each
        possible = ", ".join(self.methods)
        if wanted == "stack":
            raise FusionError(
                f"{self._ensemble.id} has no stacker that was fitted on its adapters; possible: "
                f"{possible}."
            )
        known = wanted in get_args(Method)
        what = f"is not for {self._ensemble.task}" if known else "is not known"
        raise FusionError(f"The fusion method {wanted!r} {what}; possible: {possible}.")

    def _choose_weights(self, method: Method, weights: Mapping[str, float] | None) -> Floats:
        """[M], uniform for a method without weights."""
        if method in WEIGHTED:
            return check_weights(self._weights if weights is None else weights, self._members)
        if weights is not None:
            possible = " or ".join(each for each in WEIGHTED if each in self.methods)
            raise FusionError(f"'weights' is not for {method}; choose {possible}.")
        return uniform(len(self._members))

"""Fuses the outputs of the members of one ensemble. Serving, evaluation and fitting all use this code."""

from collections.abc import Mapping
from pathlib import Path
from typing import get_args

import numpy as np
from numpy.typing import ArrayLike

from serve.fusion.errors import FusionError, OutputError, StaleFusionError
from serve.fusion.fused import Answers, Fused
from serve.fusion.gate import Gate
from serve.fusion.labels.pooling import mean, uniform
from serve.fusion.labels.tasks import rules_of
from serve.fusion.labels.temperature import temper
from serve.fusion.members import Floats, Ints, check_weights
from serve.fusion.parameters import Parameters, read_parameters
from serve.fusion.selective.choice import Selective
from serve.fusion.stack import Stack
from serve.manifest import METHODS, Ensemble, Method

WEIGHTED: tuple[Method, ...] = ("weighted_average", "vote")
"""The methods that use weights."""


class Fusion:
    """Fuses the outputs of an ensemble's members into answers: `Fused` for classification, `FusedSets` for multilabel,
    `FusedValues` for regression.

    `stale` is true if the caller allowed fitted parameters that belong to other adapters, and these do."""

    def __init__(
        self, ensemble: Ensemble, fitted: Parameters | None = None, *, allow_stale: bool = False
    ) -> None:
        """Raises FusionError if the task is generation, or if stacker, gate, early exit or abstaining do not fit the
        ensemble. Raises StaleFusionError if what the manifest uses of them was fitted on other adapters, unless
        `allow_stale`."""
        self.ensemble = ensemble
        self._rules = rules_of(ensemble)
        self._members = [member.name for member in ensemble.members]
        self._weights = dict(zip(self._members, ensemble.weights(), strict=True))
        changed = fitted.changed_members(ensemble) if fitted else []
        if fitted and changed and not allow_stale and ensemble.fusion.method in ("stack", "gate"):
            raise StaleFusionError(
                f"The {fitted.noun} of {ensemble.id} was fitted on other adapters than those of "
                f"{', '.join(changed)}: "
                "fit it again, choose another method, or allow it with allow_stale_fusion."
            )
        usable = None if changed and not allow_stale else fitted
        self._stack = usable if isinstance(usable, Stack) else None
        self.gate = usable if isinstance(usable, Gate) else None
        self.selective = Selective(ensemble, allow_stale=allow_stale)
        self.stale = (bool(changed) and allow_stale) or self.selective.stale

    @classmethod
    def from_manifest(
        cls, ensemble: Ensemble, parameters: Path | None, *, allow_stale: bool = False
    ) -> "Fusion":
        """Reads the fitted parameters from the file `parameters`, if the manifest names any, and makes the fusion.

        A stacker or gate may have been fitted on other adapters than the ensemble's. Then, unless `allow_stale`, this
        raises StaleFusionError if the manifest's method needs it; with another method it leaves it out, so that
        requests cannot choose it. Raises FusionError as the constructor does, and for a file that is missing or
        unsound."""
        model = ensemble.fusion.model
        if model is None:
            return cls(ensemble, allow_stale=allow_stale)
        if parameters is None:
            raise FusionError(
                f"{ensemble.id} names fitted parameters, but their file was not given."
            )
        return cls(
            ensemble, read_parameters(parameters, model, ensemble.task), allow_stale=allow_stale
        )

    @property
    def methods(self) -> tuple[Method, ...]:
        """The methods that a request may choose."""
        known = METHODS[self.ensemble.task]
        missing = {"stack": self._stack is None, "gate": self.gate is None}
        return tuple(method for method in known if not missing.get(method))

    def __call__(
        self,
        outputs: ArrayLike,
        *,
        method: str | None = None,
        weights: Mapping[str, float] | None = None,
        vectors: ArrayLike | None = None,
        top_k: int | None = None,
    ) -> Answers:
        """Fuses probabilities [M, N, C] or values [M, N] of M members, in the manifest's order, into N answers.

        `method`, `weights` (member -> weight) and a gate's `top_k` are the request's and replace the manifest's. The
        temperature is applied only to the manifest's own method, because it was fitted with that. A gate needs the
        base's `vectors` [N, H] of the inputs; members that its `top_k` leaves out may have any outputs. Raises
        FusionError if the method or the weights cannot be used, and OutputError if the members' outputs or the fused
        ones are unsound."""
        chosen = self._choose(method)
        values = self._choose_weights(chosen, weights)
        if chosen == "gate":
            return self._gated(outputs, vectors, top_k)
        members = self._rules.check(outputs, self._members)
        return self._fuse(chosen, members, values)

    def routes(self, vectors: ArrayLike, top_k: int | None = None) -> Floats:
        """Returns the gate's weights [M, N] for the inputs with these vectors of the base [N, H]. `top_k` is the
        request's, or else the manifest's counts."""
        assert self.gate is not None, "gate is among the methods only if it was fitted"
        return self.gate.weights(vectors, top_k or self.ensemble.fusion.top_k)

    def _gated(self, outputs: ArrayLike, vectors: ArrayLike | None, top_k: int | None) -> Answers:
        if vectors is None:
            raise FusionError("A gate reads the base's vectors of the inputs, and there are none.")
        weights = self.routes(vectors, top_k)
        given = np.array(outputs, dtype=np.float64)
        given[weights == 0] = 1 / given.shape[-1]  # nobody has asked these members
        members = self._rules.check(given, self._members)
        return self._tempered("gate", mean(members, weights), members, weights)

    def of_some(self, outputs: ArrayLike, places: Ints) -> Fused:
        """Fuses probabilities [m, N, C] of the members at these places by the manifest's own method; their weights are
        scaled to sum to 1. Classification only. Raises OutputError as a call does."""
        members = self._rules.check(outputs, [self._members[place] for place in places])
        fused = self._fuse(self.ensemble.fusion.method, members, self.weights_of(places))
        assert isinstance(fused, Fused), "only labels that exclude each other are answered early"
        return fused

    def weights_of(self, places: Ints) -> Floats:
        """Returns the weights of the manifest's own method for the members at these places; they sum to 1."""
        weights = self._choose_weights(self._choose(None), None)[places]
        return np.asarray(weights / weights.sum())

    def is_own(
        self,
        method: str | None,
        weights: Mapping[str, float] | None,
        top_k: int | None = None,
    ) -> bool:
        """Returns whether a request leaves the manifest's own fusion as it is."""
        spec = self.ensemble.fusion
        return method in (None, spec.method) and weights is None and top_k in (None, spec.top_k)

    def _fuse(self, chosen: Method, members: Floats, values: Floats) -> Answers:
        own = self.ensemble.fusion
        if chosen == "vote":
            return self._rules.vote(members, values)
        if chosen == "stack":
            assert self._stack is not None, "it is among the methods only if it was fitted"
            with np.errstate(over="ignore", invalid="ignore"):  # an unsound result is refused below
                fused = self._rules.from_scores(self._stack.scores(self._rules.evidence(members)))
        else:
            fused = self._rules.pool(members, values, own.space)
        return self._tempered(chosen, fused, members, values)

    def _tempered(self, chosen: Method, fused: Floats, members: Floats, values: Floats) -> Answers:
        """Returns the answers of pooled outputs."""
        own = self.ensemble.fusion
        if chosen == own.method and own.temperature != 1:
            fused = temper(fused, own.temperature)
        self._refuse_unsound(fused)
        return self._rules.answer(fused, members, values)

    def alone(self, output: ArrayLike, name: str = "alone") -> Answers:
        """Returns what the member `name` answers by itself, from its probabilities [N, C] or values [N]. Raises
        OutputError if they are unsound."""
        members = self._rules.check(np.asarray(output)[np.newaxis], [name])
        return self._rules.answer(members[0], members, uniform(1))

    def _refuse_unsound(self, fused: Floats) -> None:
        """Raises OutputError where a stacker's coefficients are too large for the members' outputs."""
        sound = np.isfinite(fused)
        if not sound.all():
            row = int(np.argwhere(~sound)[0][0])
            raise OutputError(
                f"The fusion of {self.ensemble.id} is not finite (NaN or infinite) in row {row}."
            )

    def _choose(self, method: str | None) -> Method:
        wanted = method or self.ensemble.fusion.method
        for each in self.methods:
            if wanted == each:
                return each
        possible = ", ".join(self.methods)
        if wanted in ("stack", "gate") and wanted in METHODS[self.ensemble.task]:
            what = "stacker" if wanted == "stack" else "gate"
            raise FusionError(
                f"{self.ensemble.id} has no {what} that was fitted on its adapters; possible: {possible}."
            )
        known = wanted in get_args(Method)
        what = f"is not for {self.ensemble.task}" if known else "is not known"
        raise FusionError(f"The fusion method {wanted!r} {what}; possible: {possible}.")

    def _choose_weights(self, method: Method, weights: Mapping[str, float] | None) -> Floats:
        """Returns weights [M] that sum to 1; uniform ones for a method without weights."""
        if method in WEIGHTED:
            return check_weights(self._weights if weights is None else weights, self._members)
        if weights is not None:
            possible = " or ".join(each for each in WEIGHTED if each in self.methods)
            raise FusionError(f"'weights' is not for {method}; choose {possible}.")
        return uniform(len(self._members))

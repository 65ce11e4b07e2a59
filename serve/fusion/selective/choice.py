"""What one request may have of an ensemble's early exit and abstaining."""

import numpy as np

from serve.fusion.errors import FusionError, StaleFusionError
from serve.fusion.members import Ints
from serve.fusion.selective.record import SelectiveFit
from serve.manifest import PREFIX_METHODS, Abstain, EarlyExit, Ensemble

ASK_TRAINING = (
    "train the ensemble again, or swap a member, so that it is fitted on its validation rows"
)


class Selective:
    """The fitted thresholds of one ensemble.

    `stale` is true if the manifest uses thresholds that were fitted on other adapters, which the caller allowed."""

    def __init__(self, ensemble: Ensemble, *, allow_stale: bool = False) -> None:
        """Raises FusionError if the manifest asks for early exit or abstaining and has no fit for it. Raises
        StaleFusionError if the fit is of other adapters, unless `allow_stale`."""
        self._ensemble = ensemble
        spec = ensemble.fusion
        fit = SelectiveFit.of(ensemble)
        changed = fit.changed_members(ensemble) if fit else []
        used = spec.early_exit is not None or spec.abstain is not None
        if changed and used and not allow_stale:
            raise StaleFusionError(
                f"Early exit and abstaining of {ensemble.id} were fitted on other adapters than those of "
                f"{', '.join(changed)}: fit them again, leave them out, or allow it with allow_stale_fusion."
            )
        self.stale = bool(changed) and used
        self._fit = None if changed and not allow_stale else fit
        if spec.early_exit is not None:
            self.exit(None, own=True)
        if spec.abstain is not None:
            self.abstain(None, None, own=True)

    def exit(self, asked: EarlyExit | None, *, own: bool) -> tuple[Ints, float] | None:
        """Returns the places of the members in the order in which they are asked, and the threshold that ends it; None
        if all members are asked.

        `asked` is the request's, or else the manifest's counts. `own`: the request leaves the manifest's method and
        weights as they are; the manifest's early exit is for these alone. Raises FusionError for a request that cannot
        be honoured."""
        wanted = asked or (self._ensemble.fusion.early_exit if own else None)
        if wanted is None:
            return None
        self._refuse_task("early_exit")
        if not own:
            raise FusionError(
                "'early_exit' is fitted for the ensemble's own method and weights; leave 'method' and 'weights' out."
            )
        method = self._ensemble.fusion.method
        if method not in PREFIX_METHODS:
            raise FusionError(
                f"'early_exit' is for {', '.join(PREFIX_METHODS)}, and {self._ensemble.id} is fused by {method}, which "
                "needs every member."
            )
        if self._fit is None or self._fit.early_exit is None:
            raise FusionError(f"{self._ensemble.id} has no fit of early exit: {ASK_TRAINING}.")
        fit = self._fit.early_exit
        names = [member.name for member in self._ensemble.members]
        order = np.array([names.index(name) for name in fit.order])
        return order, fit.threshold(wanted.risk)

    def abstain(
        self, asked: Abstain | None, early_exit: EarlyExit | None, *, own: bool
    ) -> float | None:
        """Returns how sure an answer must be, lest it abstains; None if none abstains. Arguments and errors as those of
        `exit`; `early_exit` is the request's."""
        spec = self._ensemble.fusion
        wanted = asked or (spec.abstain if own else None)
        if wanted is None:
            return None
        self._refuse_task("abstain")
        if not own:
            raise FusionError(
                "'abstain' is fitted for the ensemble's own method and weights; leave 'method' and 'weights' out."
            )
        exits = early_exit or spec.early_exit
        risk = (exits.risk or None) if exits else None  # at no risk, all members are asked
        fits = self._fit.abstain if self._fit else []
        for fit in fits:
            if fit.early_exit == risk:
                return fit.threshold(wanted.risk, wanted.confidence)
        if fits and exits is not None:
            raise FusionError(
                "'abstain' is not fitted for this 'early_exit'; leave 'early_exit' out, and the ensemble's own counts."
            )
        raise FusionError(f"{self._ensemble.id} has no fit of abstaining: {ASK_TRAINING}.")

    def _refuse_task(self, field: str) -> None:
        if self._ensemble.task != "classification":
            raise FusionError(f"{field!r} is for classification, not for {self._ensemble.task}.")

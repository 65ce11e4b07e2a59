"""What the steps work on: one ensemble, its answers, and the means to train a member again."""

from dataclasses import dataclass

from serve.bundle import Bundle
from serve.errors import UserError
from serve.manifest import Ensemble
from training.improve.judged import Judged, Unmeasured
from training.improve.trials import Trials


class ImproveError(UserError, ValueError):
    """Nothing about this ensemble can be measured. The message is one sentence for its owner."""


@dataclass(frozen=True)
class Case:
    """One ensemble of a bundle."""

    bundle: Bundle
    ensemble: Ensemble
    judged: Judged
    found: Trials | str
    """The trials, or why no member can be trained again."""

    @property
    def trials(self) -> Trials:
        """Return the trials. Raises Unmeasured if there can be none."""
        if isinstance(self.found, str):
            raise Unmeasured(self.found)
        return self.found

    @property
    def member_minutes(self) -> float | None:
        """About how long it takes to train one member; None if none can be trained."""
        return None if isinstance(self.found, str) else self.found.minutes(self.found.splits.train)

    @property
    def all_minutes(self) -> float | None:
        """About how long it takes to train all members again; None if none can be trained."""
        return None if isinstance(self.found, str) else self.found.all_minutes()

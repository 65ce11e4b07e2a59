"""What a manifest's `scores` say of early exit and abstaining: fitted on which adapters, and to which numbers."""

import hashlib
import json
from typing import Any, Literal, Self

from pydantic import ValidationError

from serve.fusion.selective.abstain import AbstainFit
from serve.fusion.selective.early_exit import ExitFit
from serve.manifest import Contract, Digest, Ensemble, Name

KEY = "selective"


class SelectiveFit(Contract):
    """The fits of early exit and abstaining to one ensemble's validation rows."""

    format: Literal[1] = 1
    digests: dict[Name, list[Digest]]
    """Member -> the digests of its adapters."""
    numbers: Digest
    """Of the method, the weights and the temperature that answered the rows."""
    early_exit: ExitFit | None = None
    abstain: tuple[AbstainFit, ...] = ()
    """One for answers of all members, and one for those that the manifest's early exit gives."""

    @classmethod
    def of(cls, ensemble: Ensemble) -> Self | None:
        """Returns the manifest's fits; None if there are none, or they are of other members or numbers."""
        try:
            fit = cls.model_validate(ensemble.scores.get(KEY))
        except ValidationError:
            return None
        same = (
            fit.numbers == numbers_digest(ensemble)
            and fit.digests.keys() == digests(ensemble).keys()
        )
        return fit if same else None

    def changed_members(self, ensemble: Ensemble) -> list[str]:
        """Returns the names of members whose adapters are not those of the fit."""
        return [name for name, own in digests(ensemble).items() if self.digests.get(name) != own]

    def written(self, ensemble: Ensemble) -> Ensemble:
        """Returns the manifest with these fits."""
        scores = {**ensemble.scores, KEY: self.model_dump(mode="json", exclude_none=True)}
        return ensemble.model_copy(update={"scores": scores})


def fits_in(ensemble: Ensemble) -> dict[str, Any]:
    """Returns the manifest's scores without all but these fits."""
    return {key: value for key, value in ensemble.scores.items() if key == KEY}


def without_fit(ensemble: Ensemble) -> Ensemble:
    """Returns the manifest without fits of early exit and abstaining."""
    scores = {key: value for key, value in ensemble.scores.items() if key != KEY}
    return ensemble.model_copy(update={"scores": scores})


def digests(ensemble: Ensemble) -> dict[str, list[str]]:
    """Returns the digests of each member's adapters."""
    return {member.name: [ref.digest for ref in member.adapters] for member in ensemble.members}


def numbers_digest(ensemble: Ensemble) -> str:
    """Returns the SHA-256 of what decides how the members' outputs become an answer."""
    spec = ensemble.fusion
    weighted = spec.method in ("weighted_average", "vote")
    weights = [round(weight, 9) for weight in ensemble.weights()] if weighted else None
    content = [
        weights,
        spec.method,
        spec.space,
        float(spec.temperature),
        spec.model,
        ensemble.labels,
    ]
    return f"sha256:{hashlib.sha256(json.dumps(content).encode()).hexdigest()}"

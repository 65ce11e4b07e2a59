"""What is left of a manifest when members cannot be loaded."""

from collections.abc import Mapping

from serve.engine.interface import PrepareError
from serve.manifest import Ensemble


def without(ensemble: Ensemble, absent: Mapping[str, PrepareError]) -> Ensemble:
    """The ensemble less some members; its weights then add up over the rest.

    Raises PrepareError if too few are left, or the fusion needs them all."""
    if not absent:
        return ensemble
    name, reason = next(iter(absent.items()))
    if ensemble.fusion.method == "stack":
        raise PrepareError(f"A stacker needs all members, and {name!r} failed: {reason}")
    members = [member for member in ensemble.members if member.name not in absent]
    if not any(member.weight != 0 for member in members):
        raise PrepareError(f"No member with a weight is left; {name!r} failed: {reason}")
    return ensemble.model_copy(update={"members": members})

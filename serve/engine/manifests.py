"""What of a manifest an engine can serve."""

from collections.abc import Mapping

from serve.engine.interface import PrepareError
from serve.fusion.errors import FusionError
from serve.fusion.token_weights import token_method
from serve.manifest import Ensemble


def refuse_unserved(ensemble: Ensemble, kind: str) -> None:
    """Raises PrepareError for what a manifest may say and this version of Choir cannot serve yet."""
    if kind == "causal" and ensemble.task in ("multilabel", "regression"):
        raise PrepareError(
            f"The task {ensemble.task} needs adapters with heads: an encoder base, or a causal one whose bundle.json "
            'says "kind": "encoder". This one scores labels that exclude each other.'
        )
    if ensemble.task == "generation":
        if kind == "encoder":
            raise PrepareError(
                "A base that heads read (an encoder) cannot serve the task generation."
            )
        try:
            token_method(ensemble)
        except FusionError as error:
            raise PrepareError(str(error)) from error
    for member in ensemble.members:
        if kind == "encoder" and not member.adapters:
            raise PrepareError(
                f"Member {member.name!r} is the plain base, and an encoder base has no head to answer with."
            )


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

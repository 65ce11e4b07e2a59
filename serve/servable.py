"""What of a manifest an engine can serve, whatever its adapters hold."""

from serve.base.folder import BaseKind
from serve.fusion.errors import FusionError
from serve.fusion.token_weights import token_method
from serve.manifest import Ensemble


def unserved_ensemble(ensemble: Ensemble, kind: BaseKind) -> str | None:
    """What the manifest says that this version of Choir cannot serve over a base of this kind, as a sentence."""
    if kind == "causal" and ensemble.task in ("multilabel", "regression"):
        return (
            f"The task {ensemble.task} needs adapters with heads: an encoder base, or a causal one whose bundle.json "
            'says "kind": "encoder". This one scores labels that exclude each other.'
        )
    if ensemble.task == "generation":
        if kind == "encoder":
            return "A base that heads read (an encoder) cannot serve the task generation."
        try:
            token_method(ensemble)
        except FusionError as error:
            return str(error)
    for member in ensemble.members:
        if kind == "encoder" and not member.adapters:
            return f"Member {member.name!r} is the plain base, and an encoder base has no head to answer with."
    return None

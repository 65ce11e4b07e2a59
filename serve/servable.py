"""Whether an engine can serve a manifest at all, before its adapters are looked at."""

from serve.base.folder import BaseKind
from serve.fusion.errors import FusionError
from serve.fusion.token_weights import token_method
from serve.labels import INVOCATION
from serve.manifest import Ensemble


def unserved_ensemble(ensemble: Ensemble, kind: BaseKind) -> str | None:
    """Returns why this version of Choir cannot serve the manifest over a base of this kind, in a sentence; None if it
    can."""
    if INVOCATION in ensemble.template.removesuffix(INVOCATION):
        return (
            f"The template {ensemble.template!r} has {INVOCATION} in its middle; an invocation stands at the end, so "
            "that all before it is the base's."
        )
    if kind == "causal" and ensemble.task in ("multilabel", "regression"):
        return (
            f"The task {ensemble.task} needs adapters with heads: an encoder base, or a causal one whose bundle.json "
            'says "kind": "encoder". This one scores labels that exclude each other.'
        )
    if kind == "causal" and ensemble.fusion.model == "gate":
        return (
            "A gate reads the vector that the base gives of a text, and a base that writes gives none: use an encoder "
            'base, or a causal one whose bundle.json says "kind": "encoder".'
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

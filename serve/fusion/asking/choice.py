"""Chooses how the members are asked: as the manifest says, unless a request says otherwise."""

from collections.abc import Mapping

from serve.fusion.asking.asking import AllMembers, Asking, asked_offline
from serve.fusion.asking.rounds import Rounds
from serve.fusion.asking.routed import Routed
from serve.fusion.errors import FusionError
from serve.fusion.fuse import Fusion
from serve.fusion.fused import Answers
from serve.fusion.members import Floats
from serve.manifest import EarlyExit


def asking_for(
    fusion: Fusion,
    rows: int,
    method: str | None = None,
    weights: Mapping[str, float] | None = None,
    early_exit: EarlyExit | None = None,
    top_k: int | None = None,
) -> Asking:
    """Returns how the members are asked about N inputs. What is given is the request's and replaces the manifest's.

    Raises FusionError for a request that cannot be honoured."""
    chosen = method or fusion.ensemble.fusion.method
    if top_k is not None and chosen != "gate":
        raise FusionError(f"'top_k' is for gate, which says whom to ask, and not for {chosen}.")
    exits = fusion.selective.exit(early_exit, own=fusion.is_own(method, weights))
    if exits is not None:
        return Rounds(fusion, *exits, rows)
    if chosen == "gate" and fusion.gate is not None:
        if weights is not None:
            raise FusionError("'weights' is not for gate, which has its own for every input.")
        return Routed(fusion, rows, top_k)
    return AllMembers(fusion, rows, method, weights)


def served_answers(fusion: Fusion, outputs: Floats, vectors: Floats | None = None) -> Answers:
    """Returns what an engine answers if the members say `outputs`, [M, N, C] or [M, N]. `vectors` [N, H] are the
    base's, for a gate."""
    return asked_offline(asking_for(fusion, outputs.shape[1]), outputs, vectors)

"""Which answers would be others without one of the members (leave one out)."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from serve.fusion.errors import FusionError, OutputError
from serve.fusion.fuse import Fusion
from serve.fusion.fused import Answers, agreeing
from serve.fusion.members import Floats
from serve.fusion.selective.record import without_fit


@dataclass(frozen=True)
class Attribution:
    """Of one member: which of N answers would be others without it."""

    member: str
    changed: NDArray[np.bool_]
    """[N]"""


def left_out(fusion: Fusion, outputs: Floats, answers: Answers) -> list[Attribution]:
    """Returns for each member which of the `answers` [N] would be others without it. `outputs` are all members'
    [M, N, C].

    Pooling and votes leave the member out, and the weights of the others are scaled to sum to 1. A stacker needs every
    member, so the mean of the others stands for it. Empty for values, for a lone member, and for a gate. A member
    without which nobody has a weight changes every answer."""
    members = fusion.ensemble.members
    if len(members) < 2 or fusion.ensemble.fusion.method == "gate":
        return []
    found = []
    for place, member in enumerate(members):
        changed = np.ones(outputs.shape[1], dtype=np.bool_)
        try:
            without = _without(fusion, outputs, place)
        except (FusionError, OutputError):
            without = None
        if without is not None:
            same = agreeing(without, answers)
            if same is None:
                return []
            changed = ~same
        found.append(Attribution(member.name, changed))
    return found


def _without(fusion: Fusion, outputs: Floats, place: int) -> Answers | None:
    """Returns the answers without the member at a place; None if no other member has a weight."""
    others = np.delete(outputs, place, axis=0)
    if fusion.ensemble.fusion.method == "stack":
        filled = outputs.copy()
        filled[place] = others.mean(axis=0)
        return fusion(filled)
    members = [each for at, each in enumerate(fusion.ensemble.members) if at != place]
    if all(member.weight == 0 for member in members):
        return None
    unfitted = dict.fromkeys(("model", "parameters", "early_exit", "abstain"))
    spec = fusion.ensemble.fusion.model_copy(update=unfitted)
    smaller = fusion.ensemble.model_copy(update={"members": members, "fusion": spec})
    return Fusion(without_fit(smaller))(others)

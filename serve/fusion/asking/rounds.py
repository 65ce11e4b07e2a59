"""Asks member by member, as early exit does: each input stops by itself."""

import numpy as np

from serve.fusion.asking.asking import Asking, Question
from serve.fusion.fuse import Fusion
from serve.fusion.fused import Answers, Fused, joined
from serve.fusion.members import Floats, Ints
from serve.fusion.selective.early_exit import sureness


class Rounds(Asking):
    """In each round, the next member is asked about the inputs whose answers are not sure enough yet."""

    partial = True

    def __init__(self, fusion: Fusion, order: Ints, threshold: float, rows: int) -> None:
        """`order`: places of the members that are asked, the strongest first."""
        super().__init__(len(fusion.ensemble.members), rows)
        self._fusion = fusion
        self._order = order
        self._threshold = threshold
        self._open = np.arange(rows)
        self._stage = 0
        self._stopped: list[tuple[Ints, Answers]] = []

    def questions(self) -> tuple[Question, ...]:
        if self._stage == len(self._order) or (self._stage and not len(self._open)):
            return ()
        return (Question(int(self._order[self._stage]), self._open),)

    def _taken(self) -> None:
        self._stage += 1
        fused, sure = stage(self._fusion, self._order[: self._stage], self.outputs[:, self._open])
        stops = sure >= self._threshold
        if self._stage == len(self._order):
            stops[:] = True
        self._stopped.append((self._open[stops], joined([fused], np.flatnonzero(stops))))
        self._open = self._open[~stops]

    def answers(self) -> Answers:
        places = np.concatenate([rows for rows, _ in self._stopped])
        return joined([fused for _, fused in self._stopped], np.argsort(places))


def stage(fusion: Fusion, first: Ints, outputs: Floats) -> tuple[Fused, Floats]:
    """Returns the answers of the members `first`, and how sure they are [N], from the outputs [M, N, C] of all."""
    members, weights = outputs[first], fusion.weights_of(first)
    fused = fusion.of_some(members, first)
    return fused, sureness(members, weights, fused.winners)

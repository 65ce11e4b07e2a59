"""Asks the members that a gate chooses for each input."""

import numpy as np

from serve.fusion.asking.asking import Asking, Question
from serve.fusion.fuse import Fusion
from serve.fusion.fused import Answers
from serve.fusion.members import Floats


class Routed(Asking):
    """The gate reads the base's vectors, and the members with a weight are asked, all at once."""

    partial = True
    reads_base = True

    def __init__(self, fusion: Fusion, rows: int, top_k: int | None = None) -> None:
        """`top_k`: how many members are asked about an input; None: the manifest's."""
        super().__init__(len(fusion.ensemble.members), rows)
        self._fusion = fusion
        self._top_k = top_k
        self._vectors: Floats | None = None
        self._done = False

    def route(self, vectors: Floats) -> None:
        self._vectors = vectors

    def questions(self) -> tuple[Question, ...]:
        assert self._vectors is not None, "the gate reads the base's vectors first"
        if self._done:
            return ()
        chosen = self._fusion.routes(self._vectors, self._top_k) > 0
        return tuple(
            Question(member, np.flatnonzero(rows))
            for member, rows in enumerate(chosen)
            if rows.any()
        )

    def _taken(self) -> None:
        self._done = True

    def answers(self) -> Answers:
        return self._fusion(self.outputs, method="gate", vectors=self._vectors, top_k=self._top_k)

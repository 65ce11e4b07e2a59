"""Which members are asked about which inputs, round by round, and what their outputs become. Serving asks an engine;
training asks stored outputs."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from serve.fusion.fuse import Fusion
from serve.fusion.fused import Answers
from serve.fusion.members import Floats, Ints


@dataclass(frozen=True)
class Question:
    """One member is asked about some inputs."""

    member: int
    """Place of the member in the manifest."""
    rows: Ints
    """Places of the inputs."""


class Asking(ABC):
    """The members of one ensemble are asked about N inputs.

    Take `questions`, give `take` the outputs, until there are no more; then there are `answers`. The first questions
    are about every input."""

    partial: ClassVar[bool] = False
    """Whether some members may not be asked about some inputs."""
    reads_base: ClassVar[bool] = False
    """Whether `route` must be given the base's vectors of the inputs first."""

    def __init__(self, members: int, rows: int) -> None:
        self.asked: NDArray[np.bool_] = np.zeros((members, rows), dtype=np.bool_)
        """[M, N] whether the member was asked about the input."""
        self.outputs: Floats = np.zeros((members, rows))
        """[M, N, C] or [M, N]; 0 where the member was not asked."""

    @property
    def passes(self) -> Ints:
        """How many forward passes the answer to each input took [N]: the members that were asked, and the base's own
        where it is read first."""
        passes: Ints = self.asked.sum(axis=0) + int(self.reads_base)
        return passes

    def route(self, vectors: Floats) -> None:
        """Takes the base's vectors [N, H] of all inputs."""
        raise NotImplementedError(f"{type(self).__name__} reads no vectors of the base")

    @abstractmethod
    def questions(self) -> tuple[Question, ...]:
        """Returns what is to be asked next, all at once; nothing if the answers are there."""

    def take(self, questions: Sequence[Question], outputs: Sequence[NDArray[Any]]) -> None:
        """Takes the outputs [n, C] or [n] of each question's member for its inputs."""
        for question, own in zip(questions, outputs, strict=True):
            if self.outputs.ndim - 1 != own.ndim:
                self.outputs = np.zeros((*self.asked.shape, *own.shape[1:]))
            self.outputs[question.member, question.rows] = own
            self.asked[question.member, question.rows] = True
        self._taken()

    @abstractmethod
    def _taken(self) -> None:
        """Decides what follows from the outputs."""

    @abstractmethod
    def answers(self) -> Answers:
        """Returns the answers to all inputs. Raises FusionError and OutputError as a fusion does."""


class _AtOnce(Asking):
    """Some members are asked about every input, in one round."""

    def __init__(self, fusion: Fusion, places: Sequence[int], rows: int) -> None:
        super().__init__(len(fusion.ensemble.members), rows)
        self._fusion = fusion
        self._places = places
        self._done = False

    def questions(self) -> tuple[Question, ...]:
        if self._done:
            return ()
        rows = np.arange(self.asked.shape[1])
        return tuple(Question(place, rows) for place in self._places)

    def _taken(self) -> None:
        self._done = True


class OneMember(_AtOnce):
    """One member answers alone."""

    def __init__(self, fusion: Fusion, name: str, rows: int) -> None:
        self._name = name
        names = [member.name for member in fusion.ensemble.members]
        self._place = names.index(name)
        super().__init__(fusion, [self._place], rows)

    def answers(self) -> Answers:
        return self._fusion.alone(self.outputs[self._place], self._name)


class AllMembers(_AtOnce):
    """Every member is asked about every input."""

    def __init__(
        self,
        fusion: Fusion,
        rows: int,
        method: str | None = None,
        weights: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__(fusion, range(len(fusion.ensemble.members)), rows)
        self._method = method
        self._weights = weights

    def answers(self) -> Answers:
        return self._fusion(self.outputs, method=self._method, weights=self._weights)


def asked_offline(asking: Asking, outputs: Floats, vectors: Floats | None = None) -> Answers:
    """Returns the answers if the members say `outputs`, [M, N, C] or [M, N]. `vectors` [N, H] are the base's."""
    if asking.reads_base:
        assert vectors is not None, "a gate reads them"
        asking.route(vectors)
    while questions := asking.questions():
        asking.take(questions, [outputs[each.member, each.rows] for each in questions])
    return asking.answers()

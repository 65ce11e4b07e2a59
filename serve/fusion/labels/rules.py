"""What a fusion must know of a task: what members give, how that is pooled, what answers are made of it, and how wrong
they are."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, TypeAlias

from numpy.typing import ArrayLike, NDArray

from serve.fusion.errors import FusionError
from serve.fusion.fused import Answers
from serve.fusion.members import Floats
from serve.manifest import Space

Criterion: TypeAlias = Literal["log_loss", "accuracy", "micro_f1", "squared_error"]
Loss: TypeAlias = tuple[float, float]
"""What is minimised first, and what decides between equals."""


class Rules(ABC):
    """The outputs of M members are [M, N, C] probabilities or [M, N] values, and pooled ones [N, C]
    or [N]."""

    criteria: ClassVar[tuple[Criterion, ...]]
    """What weights may be fitted by, the default first."""

    @abstractmethod
    def check(self, outputs: ArrayLike, members: Sequence[str]) -> Floats:
        """The members' outputs as float64. Raises OutputError."""

    @abstractmethod
    def check_targets(self, targets: ArrayLike, members: Floats) -> NDArray[Any]:
        """The right answers to the rows of checked outputs. Raises FusionError."""

    @abstractmethod
    def pool(self, members: Floats, weights: Floats, space: Space = "probability") -> Floats:
        """The average of checked outputs by weights [M] that sum to 1."""

    @abstractmethod
    def answer(self, pooled: Floats, members: Floats, weights: Floats) -> Answers:
        """The answers that pooled outputs give; members and weights say how far they are apart."""

    def vote(self, members: Floats, weights: Floats) -> Answers:
        """The answers that a vote of the members gives. Raises FusionError where there are no votes."""
        raise FusionError("Only labels can be voted on.")

    @abstractmethod
    def loss(self, pooled: Floats, targets: NDArray[Any], criterion: Criterion) -> Loss:
        """How wrong pooled outputs are."""

    @abstractmethod
    def merit(self, member: Floats, targets: NDArray[Any]) -> float:
        """What a member's weight is proportional to where weights follow merit; 0 for none."""

    @abstractmethod
    def evidence(self, members: Floats) -> Floats:
        """[M, N, C] what a stacker reads of checked outputs: log-odds, or values as one column."""

    @abstractmethod
    def indicators(self, targets: NDArray[Any]) -> Floats:
        """[N, C] what a stacker learns: 0 or 1 a label, or the value."""

    @abstractmethod
    def from_scores(self, scores: Floats) -> Floats:
        """Pooled outputs from a stacker's scores [N, C]."""

"""What a fusion needs to know about a task: how outputs are checked, pooled, turned into answers and judged."""

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
"""The loss to be minimised, and a second one that decides between equals."""


class Rules(ABC):
    """The rules of one task. M members give outputs for N rows: probabilities [M, N, C] of C labels, or values [M, N].
    Pooled outputs are [N, C] or [N]."""

    criteria: ClassVar[tuple[Criterion, ...]]
    """The criteria that weights can be fitted by, the default first."""

    @abstractmethod
    def check(self, outputs: ArrayLike, members: Sequence[str]) -> Floats:
        """Returns the members' outputs as float64. Raises OutputError if they are unsound."""

    @abstractmethod
    def check_targets(self, targets: ArrayLike, members: Floats) -> NDArray[Any]:
        """Returns the right answers to the rows of checked outputs. Raises FusionError if they are unsound."""

    @abstractmethod
    def pool(self, members: Floats, weights: Floats, space: Space = "probability") -> Floats:
        """Returns the average of checked outputs by weights [M] that sum to 1."""

    @abstractmethod
    def answer(self, pooled: Floats, members: Floats, weights: Floats) -> Answers:
        """Returns the answers to pooled outputs. Members and weights [M] give how far the members are apart."""

    def vote(self, members: Floats, weights: Floats) -> Answers:
        """Returns the answers that the members' votes give. Raises FusionError for a task without votes."""
        raise FusionError("Only labels can be voted on.")

    @abstractmethod
    def loss(self, pooled: Floats, targets: NDArray[Any], criterion: Criterion) -> Loss:
        """Returns how wrong pooled outputs are by `criterion`; lower is better."""

    @abstractmethod
    def merit(self, member: Floats, targets: NDArray[Any]) -> float:
        """Returns what a member's weight is proportional to where weights follow merit; at least 0."""

    @abstractmethod
    def evidence(self, members: Floats) -> Floats:
        """Returns what a stacker reads of checked outputs, [M, N, C]: log-odds, or values as one column (C = 1)."""

    @abstractmethod
    def indicators(self, targets: NDArray[Any]) -> Floats:
        """Returns what a stacker learns, [N, C]: 0 or 1 for each label, or the value."""

    @abstractmethod
    def from_scores(self, scores: Floats) -> Floats:
        """Returns pooled outputs from a stacker's scores [N, C]."""

"""The outputs of all rungs' members, for the validation rows and for the rows that are judged."""

from collections.abc import Iterable, Sequence
from typing import Self

import numpy as np

from serve.bundle import Bundle
from serve.fusion.members import Floats
from serve.manifest import Ensemble, Member
from training.evaluation.evaluation import Evaluation, Labelled
from training.progress import Watch


class MemberOutputs:
    """The outputs of members for fixed rows. Members with the same adapters are the same, whatever their names."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, ...], Floats] = {}

    def __contains__(self, member: Member) -> bool:
        return _adapters(member) in self._known

    def add(self, member: Member, outputs: Floats) -> None:
        """Keep a member's probabilities [N, C] or values [N]."""
        self._known[_adapters(member)] = outputs

    def of(self, members: Sequence[Member]) -> Floats:
        """Return probabilities [M, N, C] or values [M, N]. Raises KeyError for a member that was not added."""
        return np.stack([self._known[_adapters(member)] for member in members])

    def answered(
        self,
        bundle: Bundle,
        ensemble: Ensemble,
        members: Iterable[Member],
        rows: Labelled,
        watch: Watch,
    ) -> Self:
        """Ask those of `members` that are not known yet, by PEFT and transformers, and add what they answer. Raises
        BundleError and RecipeError."""
        new = {_adapters(member): member for member in members if member not in self}
        if new:
            asked = [
                member.model_copy(update={"name": f"member-{number}"})
                for number, member in enumerate(new.values())
            ]
            together = ensemble.model_copy(update={"members": asked})
            outputs = Evaluation(bundle, together, watch).outputs(rows)
            for member, own in zip(new.values(), outputs, strict=True):
                self.add(member, own)
        return self


def _adapters(member: Member) -> tuple[str, ...]:
    return tuple(sorted(ref.digest for ref in member.adapters))

"""The figures of answers that are watched for drift: agreement, entropy, labels."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from serve.fusion.fused import Answers, Fused, FusedValues, agreeing, joined
from serve.fusion.members import Floats, Ints


@dataclass(frozen=True)
class AnswerFigures:
    """The figures of N answers. Labels are the C of the ensemble, in its order."""

    agreement: Floats
    """[N] share of the asked members whose own answer is the fused one."""
    entropy: Floats
    """[N] in nats."""
    labels: NDArray[np.bool_]
    """[N, C] whether the label is part of the answer."""

    @classmethod
    def of(cls, answers: Answers, agreement: Floats | None) -> Self | None:
        """Returns the figures; None for values, which have none."""
        if agreement is None or isinstance(answers, FusedValues):
            return None
        if isinstance(answers, Fused):
            labels = np.zeros(answers.probabilities.shape, dtype=np.bool_)
            labels[np.arange(len(labels)), answers.winners] = True
        else:
            labels = answers.chosen
        return cls(agreement, answers.entropy, labels)


def agreement_shares(
    answers: Answers, alone: Sequence[Answers], rows: Sequence[Ints]
) -> Floats | None:
    """Returns [N] the share of the asked members that agree with each answer; None for values.

    `alone`: what each member answers by itself. `rows`: the inputs that it was asked about."""
    if isinstance(answers, FusedValues):
        return None
    agree, asked = np.zeros(len(answers.entropy)), np.zeros(len(answers.entropy))
    for own, places in zip(alone, rows, strict=True):
        asked[places] += 1
        same = agreeing(own, joined([answers], places))
        assert same is not None, "members answer as the ensemble does"
        agree[places] += same
    shares: Floats = agree / np.maximum(asked, 1)
    return shares

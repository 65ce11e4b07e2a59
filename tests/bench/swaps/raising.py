"""A candidate that fails on one text alone: a stacker whose coefficients are finite, but overflow with the members'
answers to that text."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from serve.fusion.labels.pooling import log_odds
from serve.fusion.stack.linear import LinearParameters, LinearStack

FILE = "fusion/intents/raises.json"
LARGEST = sys.float_info.max
CLEAR = -1.1
"""Log-odds that overflow when they are multiplied by the largest number."""


@dataclass(frozen=True)
class Raising:
    """Where a member tells one text from all others: at a label's log-odds. That member's product overflows for the
    text alone, another's for every text and with the other sign, so that their sum is infinite for all texts, which a
    probability can be made of, and infinity less infinity for that one."""

    text: str
    label: int
    member: int
    other: int
    limit: float
    """Only that text has log-odds of the member below the negative of this."""

    @classmethod
    def found(cls, known: Mapping[int, Mapping[str, Sequence[float]]]) -> "Raising":
        """`known`: a member's index -> text -> its probabilities by PEFT. Where the gap to the next text is widest."""
        members = list(known)
        texts = list(known[members[0]])
        chances = np.array([[known[member][text] for text in texts] for member in members])
        odds = log_odds(chances)  # [members, texts, labels]
        found = []
        for (place, label), _ in np.ndenumerate(odds[:, 0]):
            order = np.argsort(odds[place, :, label])
            lowest, second = odds[place, order[:2], label]
            others = [
                each
                for each in range(len(members))
                if each != place and (odds[each, :, label] < CLEAR).all()
            ]
            limit = -(lowest + second) / 2
            if others and limit > 1:
                where = texts[order[0]], label, members[place], members[others[0]], float(limit)
                found.append((second - lowest, cls(*where)))
        return max(found, key=lambda each: each[0])[1]

    def write(self, bundle: Path, labels: Sequence[str], digests: Mapping[str, str]) -> None:
        """Return the stacker for members with these digests."""
        coefficients = np.full((len(labels), len(digests)), 1 / len(digests))
        coefficients[self.label] = 0.0
        coefficients[self.label, self.member] = LARGEST / self.limit
        coefficients[self.label, self.other] = -LARGEST
        parameters = LinearParameters(
            labels=list(labels),
            members=list(digests),
            digests=[[digest] for digest in digests.values()],
            coefficients=coefficients.tolist(),
            intercept=[0.0] * len(labels),
        )
        LinearStack(parameters).write(bundle / FILE)

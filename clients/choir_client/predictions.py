"""The answers of `/v1/predict`: one class for each task, so that each has the fields of its task alone."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import Discriminator, Tag

from choir_client.models import AdapterRef, Answer, Usage


class MemberPrediction(Answer):
    """The answer of one member alone to one input."""

    name: str
    adapters: list[AdapterRef]


class ClassificationMember(MemberPrediction):
    label: str
    probabilities: dict[str, float]
    """Label -> probability, for every label, without the fusion's temperature."""


class MultilabelMember(MemberPrediction):
    labels: list[str]
    probabilities: dict[str, float]
    """Label -> probability, for every label; they do not sum to 1."""


class RegressionMember(MemberPrediction):
    value: float


class PredictionItem(Answer):
    """The fused answer to one input."""

    index: int
    """The place of the input, from 0."""
    members: Sequence[MemberPrediction] | None = None
    """In the manifest's order; None unless `return_members` asked for them."""


class ClassificationItem(PredictionItem):
    label: str
    probabilities: dict[str, float]
    """Label -> probability, for every label; they sum to 1."""
    entropy: float | None = None
    """Entropy of the fused probabilities, in nats."""
    disagreement: float | None = None
    """Mutual information between member and label, in nats."""
    members_asked: int | None = None
    """With `early_exit` or a gate: how many members were asked."""
    abstained: bool | None = None
    """With `abstain`: whether the answer is too uncertain for the risk that was asked for."""
    members: list[ClassificationMember] | None = None


class MultilabelItem(PredictionItem):
    labels: list[str]
    """The labels at or over their thresholds; there may be none."""
    probabilities: dict[str, float]
    """Label -> probability, for every label; they do not sum to 1."""
    entropy: float | None = None
    """Sum over the labels of each label's entropy, in nats."""
    disagreement: float | None = None
    """Mutual information between member and label, in nats, summed over the labels."""
    members: list[MultilabelMember] | None = None


class RegressionItem(PredictionItem):
    value: float
    std: float | None = None
    """The standard deviation of the members' values."""
    members: list[RegressionMember] | None = None


class Prediction(Answer):
    """The answers to all inputs, in the order of the inputs, and the version that gave them.

    `Choir.predict` returns one of the classes below, which the ensemble's task decides.
    """

    model: str
    """The version that answered, `name@version` or `name@version/member`."""
    data: Sequence[PredictionItem]
    usage: Usage = Usage()

    @property
    def labels(self) -> Sequence[str | list[str]]:
        """Classification: the label of each input. Multilabel: its list of labels. Regression: AttributeError."""
        raise AttributeError("a regression ensemble answers with values: read .values")

    @property
    def values(self) -> Sequence[float]:
        """Regression: the value of each input. Other tasks: AttributeError."""
        raise AttributeError("this ensemble answers with labels: read .labels")


class ClassificationPrediction(Prediction):
    """One label for each input."""

    data: list[ClassificationItem]

    @property
    def labels(self) -> list[str]:
        """The label of each input."""
        return [item.label for item in self.data]


class MultilabelPrediction(Prediction):
    """A list of labels for each input."""

    data: list[MultilabelItem]

    @property
    def labels(self) -> list[list[str]]:
        """The labels of each input, at or over their thresholds."""
        return [item.labels for item in self.data]


class RegressionPrediction(Prediction):
    """A value for each input."""

    data: list[RegressionItem]

    @property
    def values(self) -> list[float]:
        """The value of each input."""
        return [item.value for item in self.data]


def _task(body: Any) -> str:
    """Return the task that the answer is of, by the field that its first item has."""
    rows = body.get("data") if isinstance(body, Mapping) else None
    first = rows[0] if isinstance(rows, list) and rows else None
    fields = first if isinstance(first, Mapping) else {}
    if fields.get("value") is not None:
        return "regression"
    return "multilabel" if fields.get("labels") is not None else "classification"


AnyPrediction = Annotated[
    Annotated[ClassificationPrediction, Tag("classification")]
    | Annotated[MultilabelPrediction, Tag("multilabel")]
    | Annotated[RegressionPrediction, Tag("regression")],
    Discriminator(_task),
]
"""How a body becomes the class of its task."""

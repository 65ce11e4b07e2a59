"""What an ensemble and its members say to the validation rows, as metrics. Steps compare these, whatever the task."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from serve.bundle import Bundle
from serve.fusion.errors import FusionError
from serve.fusion.parameters import parameters_file
from serve.manifest import Ensemble, FusionSpec, Method
from training.evaluation.diversity import BETTER_IF_HIGHER, criterion_metric
from training.evaluation.evaluation import Evaluation, Labelled
from training.evaluation.metrics.resampling import Metric
from training.evaluation.validation_answers import ValidationAnswers, cross_fitted
from training.evaluation.validation_answers import alone as answered_alone
from training.progress import Watch


class Unmeasured(Exception):
    """A step cannot be measured, or not in the time that is left. The message is the reason."""


class Judged(Protocol):
    """An ensemble on its validation rows. All metrics are of the criterion, on the same rows."""

    @property
    def criterion(self) -> str:
        """What gains are measured in."""
        ...

    @property
    def higher_is_better(self) -> bool:
        """Which way the criterion goes."""
        ...

    @property
    def rows(self) -> int:
        """How many validation rows there are."""
        ...

    @property
    def served(self) -> Metric:
        """Of the ensemble's answers."""
        ...

    def member(self, name: str) -> Metric:
        """Return the metric of one member's answers."""
        ...

    def of(self, places: Sequence[int]) -> Metric:
        """Return the metric of what the members at these places would answer together, by the ensemble's method. Raises
        Unmeasured."""
        ...

    def by(self, method: Method) -> Metric:
        """Return the metric of what all members would answer by another method. Raises Unmeasured."""
        ...

    def trained(self, bundle: Bundle, alone: Ensemble, rows: Labelled, watch: Watch) -> Metric:
        """Return the metric of what a member of another bundle answers to `rows`, which are the validation rows.
        `alone` is the manifest of this one member."""
        ...


@dataclass(frozen=True)
class JudgedLabels:
    """Labels or values, from stored outputs. What has something to fit is judged on rows that its fit did not see."""

    answers: ValidationAnswers

    @property
    def criterion(self) -> str:
        return self.answers.criterion

    @property
    def higher_is_better(self) -> bool:
        return self.answers.criterion in BETTER_IF_HIGHER

    @property
    def rows(self) -> int:
        return len(self.answers.truth)

    @property
    def served(self) -> Metric:
        return criterion_metric(self.answers.served, self.answers.truth, self.answers.criterion)

    def member(self, name: str) -> Metric:
        answers = self.answers
        return criterion_metric(answers.members[name], answers.truth, answers.criterion)

    def of(self, places: Sequence[int]) -> Metric:
        answers = self.answers
        return criterion_metric(answers.of(places), answers.truth, answers.criterion)

    def by(self, method: Method) -> Metric:
        answers = self.answers
        if method == "vote" and answers.criterion == "log_loss":
            raise Unmeasured("the shares of a vote are no probabilities, so they have no log loss")
        if method == "gate" and answers.vectors is None:
            raise Unmeasured(
                "the bundle does not store the base's vectors, which a gate reads; name gate among the recipe's "
                "`candidates`"
            )
        model = answers.options.model_for(method, answers.ensemble.task)
        # The file is for serving; here the stacker or the gate is fitted anew.
        spec = FusionSpec(
            method=method, model=model, parameters=parameters_file(model) if model else None
        )
        other = answers.ensemble.model_copy(update={"fusion": spec})
        try:
            fused = cross_fitted(
                other,
                answers.options,
                answers.outputs,
                answers.truth,
                answers.folds,
                answers.vectors,
            )
        except FusionError as error:
            raise Unmeasured(str(error)) from error
        return criterion_metric(fused, answers.truth, answers.criterion)

    def trained(self, bundle: Bundle, alone: Ensemble, rows: Labelled, watch: Watch) -> Metric:
        [outputs] = Evaluation(bundle, alone, watch).outputs(rows)
        served = self.answers.ensemble
        truth = rows.targets(served)
        said = answered_alone(served, alone.members[0].name, outputs, truth)
        return criterion_metric(said, truth, self.answers.criterion)

"""What an ensemble of generation and its members write to the validation rows."""

from collections.abc import Sequence
from functools import cached_property
from time import monotonic

from serve.bundle import Bundle
from serve.manifest import TEXT_METHODS, Ensemble, Extract, FusionSpec, Method
from training.evaluation.evaluation import Evaluation, Labelled
from training.evaluation.metrics.resampling import Metric
from training.evaluation.metrics.text import text_metrics
from training.evaluation.tables import MAIN
from training.evaluation.texts.ranking import cross_ranked
from training.improve.judged import Unmeasured
from training.progress import Watch


class JudgedTexts:
    """An ensemble of generation. What its members wrote in training is kept, the rest is written while there is
    time."""

    criterion = MAIN["generation"]
    higher_is_better = True

    def __init__(
        self,
        bundle: Bundle,
        ensemble: Ensemble,
        rows: Labelled,
        max_new_tokens: int,
        extract: Extract | None,
        deadline: float,
        watch: Watch,
    ) -> None:
        """`extract` is the recipe's, and `deadline` is in the seconds of `monotonic`."""
        self._bundle = bundle
        self._ensemble = ensemble
        self._rows = rows
        self._limit = max_new_tokens
        self._extract = ensemble.fusion.extract or extract
        self._deadline = deadline
        self._watch = watch
        self._longest = 0.0

    @property
    def rows(self) -> int:
        return len(self._rows.texts)

    @cached_property
    def served(self) -> Metric:
        return self._written(self._ensemble, self._ensemble.fusion.method)

    def member(self, name: str) -> Metric:
        [member] = [each for each in self._ensemble.members if each.name == name]
        alone = self._ensemble.model_copy(update={"members": [member]})
        return self.trained(self._bundle, alone, self._rows, self._watch)

    def of(self, places: Sequence[int]) -> Metric:
        members = [self._ensemble.members[place] for place in places]
        smaller = self._ensemble.model_copy(update={"members": members})
        return self._in_time(smaller, self._ensemble.fusion.method)

    def by(self, method: Method) -> Metric:
        if method == "weighted_average":
            raise Unmeasured("no weights are fitted for what is fused at every token")
        return self._in_time(self._ensemble, method)

    def trained(self, bundle: Bundle, alone: Ensemble, rows: Labelled, watch: Watch) -> Metric:
        evaluation = Evaluation(bundle, alone, watch, max_new_tokens=self._limit)
        [texts] = evaluation.answers(rows)
        return text_metrics(texts, rows.references)[self.criterion]

    def _in_time(self, ensemble: Ensemble, method: Method) -> Metric:
        """Return the metric, unless the time is over. Nobody knows how long writing takes before it was done once."""
        begun = monotonic()
        if begun + self._longest > self._deadline:
            raise Unmeasured(
                "members would have to write, and the budget is spent; give more --minutes"
            )
        found = self._written(ensemble, method)
        self._longest = max(self._longest, monotonic() - begun)
        return found

    def _written(self, ensemble: Ensemble, method: Method) -> Metric:
        """Return the metric of what the members write by this method. A ranker is fitted to the other rows."""
        asked: Method = "average" if method == "stack" else method
        extract = self._extract if method in TEXT_METHODS else None
        fused = ensemble.model_copy(update={"fusion": FusionSpec(method=asked, extract=extract)})
        evaluation = Evaluation(self._bundle, fused, self._watch, max_new_tokens=self._limit)
        if method == "stack":
            candidates = evaluation.candidates(self._rows)
            texts = cross_ranked(fused, candidates, self._rows.references)
        else:
            texts = evaluation.served(self._rows)
        return text_metrics(texts, self._rows.references)[self.criterion]

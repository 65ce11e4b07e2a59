"""Steps of the task's definition: two labels that are confused become one, or the prompt is worded differently."""

from collections import Counter
from dataclasses import dataclass

import numpy as np

from serve.fusion.fused import Fused
from serve.terminal.words import counted
from training.evaluation.diversity import criterion_metric
from training.evaluation.validation_answers import cross_fitted
from training.improve.case import Case
from training.improve.judged import JudgedLabels, Unmeasured
from training.improve.step import Area, Finding, gain


@dataclass(frozen=True)
class MergedLabels:
    """Two labels that are taken for each other become one. This makes the task easier; it is for their owner to say
    whether the difference matters."""

    rank: int
    """Which pair: 0 is the one that is confused most often."""
    area: Area = "task"

    @property
    def name(self) -> str:
        return f"merge the labels that are confused {('most', 'second', 'third')[self.rank]}"

    def measure(self, case: Case) -> Finding:
        judged, labels = case.judged, case.ensemble.labels or []
        answers = judged.answers if isinstance(judged, JudgedLabels) else None
        if answers is None or not isinstance(answers.served, Fused):
            raise Unmeasured("only labels of which one is right are merged")
        if len(labels) <= 2:
            raise Unmeasured("there are only two labels")
        truth = answers.truth.astype(np.int64)
        said = answers.served.winners
        pairs = Counter(
            (min(pair), max(pair))
            for pair in zip(truth.tolist(), said.tolist(), strict=True)
            if pair[0] != pair[1]
        ).most_common()
        if len(pairs) <= self.rank:
            raise Unmeasured("no further labels are confused")
        (kept, gone), errors = pairs[self.rank]
        others = [place for place in range(len(labels)) if place != gone]
        outputs = answers.outputs[..., others].copy()
        outputs[..., others.index(kept)] += answers.outputs[..., gone]
        place_of = {place: number for number, place in enumerate(others)} | {
            gone: others.index(kept)
        }
        merged_truth = np.array([place_of[label] for label in truth.tolist()])
        smaller = case.ensemble.model_copy(update={"labels": [labels[each] for each in others]})
        after = cross_fitted(smaller, answers.options, outputs, merged_truth, answers.folds)
        return Finding(
            area=self.area,
            step=f"merge {labels[kept]} and {labels[gone]}",
            compared="the ensemble with their probabilities added; "
            f"{counted(errors, 'error')} between them; an easier task",
            gain=gain(
                judged, judged.served, criterion_metric(after, merged_truth, answers.criterion)
            ),
            minutes=case.all_minutes,
        )


@dataclass(frozen=True)
class OtherTemplate:
    """The prompt in other words."""

    template: str
    area: Area = "task"

    @property
    def name(self) -> str:
        return f"template {self.template!r}"

    def measure(self, case: Case) -> Finding:
        trials = case.trials
        if trials.ensemble.prompts:
            raise Unmeasured("labels are compared by their prompts, and no text has a template")
        if trials.base.by_heads:
            raise Unmeasured("members answer by heads, which read the text without a template")
        if trials.member.alora:
            raise Unmeasured("an activated LoRA begins at the end of its template")
        if trials.ensemble.template == self.template:
            raise Unmeasured("it is the template already")
        half = trials.half()
        before = trials.judged(half)
        other = trials.ensemble.model_copy(update={"template": self.template})
        after = trials.judged(half, ensemble=other)
        return Finding(
            area=self.area,
            step=self.name,
            compared=f"member {trials.member.name} on half of the rows, with both templates",
            gain=gain(case.judged, before, after),
            minutes=case.all_minutes,
        )

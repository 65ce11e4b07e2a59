"""Trains one member again, on other rows or with other values, within a budget of time."""

import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic

from datasets import Dataset

from serve.bundle import BaseSpec, Bundle
from serve.manifest import Member
from training.data.splits import Splits, bag, hold_out
from training.data.steps import FAMILY
from training.evaluation.evaluation import labelled
from training.evaluation.metrics.resampling import Metric
from training.execution.jobs import Job
from training.improve.judged import Judged, Unmeasured
from training.manifest import draft
from training.progress import Unwatched, Watch
from training.recipe import EnsembleRecipe, MemberRecipe, Recipe
from training.stages.base import Base

PROBE_STEPS = 8
"""Steps of training by which the speed of this machine is measured."""


@dataclass
class Trials:
    """Trains one member of an ensemble, and asks it the validation rows. The same trial is not trained twice."""

    recipe: Recipe
    ensemble: EnsembleRecipe
    judge: Judged
    """Says how good a trained member's answers are."""
    member: MemberRecipe
    """The member that stands for all: it has one stage."""
    labels: Sequence[str]
    base: Base
    splits: Splits
    deadline: float
    """In the seconds of `monotonic`."""
    watch: Watch
    _done: dict[str, Metric] = field(default_factory=dict)
    _seconds_a_step: float | None = None

    def half(self) -> Dataset:
        """Return half of the training rows. Families of rows stay together, and every label is kept."""
        train, task = self.splits.train, self.ensemble.task
        strata = list(train[self.ensemble.answer]) if task == "classification" else None
        kept, _ = hold_out(list(train[FAMILY]), 0.5, self.recipe.seed, strata=strata)
        return train.select(kept)

    def judged(
        self,
        rows: Dataset,
        member: MemberRecipe | None = None,
        ensemble: EnsembleRecipe | None = None,
    ) -> Metric:
        """Train the member on `rows`, and return the metric of what it answers to the validation rows. Raises
        Unmeasured if the training would take longer than there is time."""
        member, ensemble = member or self.member, ensemble or self.ensemble
        key = f"{member.model_dump_json()}{ensemble.template}{len(rows)}{rows._fingerprint}"
        if key not in self._done:
            needed, left = self.minutes(rows, member), (self.deadline - monotonic()) / 60
            if needed > left:
                raise Unmeasured(
                    f"it needs about {needed:.1f} minutes, and {max(left, 0):.1f} are left of the budget; give more "
                    "--minutes"
                )
            self._done[key] = self._trained(rows, member, ensemble, self.watch)
        return self._done[key]

    def minutes(self, rows: Dataset, member: MemberRecipe | None = None) -> float:
        """Return about how long the training of a member on `rows` takes."""
        if self._seconds_a_step is None:
            self._seconds_a_step = self._speed()
        return self._seconds_a_step * _steps(member or self.member, len(rows)) / 60

    def all_minutes(self) -> float:
        """Return about how long the training of all members takes."""
        return sum(self.minutes(self.splits.train, each) for each in self.ensemble.members)

    def _speed(self) -> float:
        """Return how many seconds one step takes, by a short training. Loading the model is not counted."""
        stage = self.member.stages[0].model_copy(update={"epochs": 1, "early_stopping": None})
        short = self.member.model_copy(update={"stages": [stage], "bag": 1.0})
        rows = self.splits.train
        count = min(len(rows), PROBE_STEPS * stage.batch_size)
        some = rows.shuffle(seed=self.recipe.seed).select(range(count))
        timed = _Stopwatch()
        with tempfile.TemporaryDirectory(prefix="choir-improve-") as scratch:
            self._train(some, short, self.ensemble, Path(scratch), timed)
        return timed.seconds / max(1, _steps(short, count))

    def _trained(
        self, rows: Dataset, member: MemberRecipe, ensemble: EnsembleRecipe, watch: Watch
    ) -> Metric:
        with tempfile.TemporaryDirectory(prefix="choir-improve-") as scratch:
            folder = Path(scratch)
            target = self._train(rows, member, ensemble, folder, watch)
            spec = BaseSpec(path=str(self.base.folder.resolve()), kind=self.recipe.base.bundle_kind)
            bundle = Bundle.create(folder / "bundle", spec)
            own = Member(name=member.name, adapters=[bundle.add_adapter(member.name, target)])
            manifest = draft(ensemble, [own], self.labels)
            judged = labelled(self.splits.validation, "validation", self.recipe, ensemble)
            return self.judge.trained(bundle, manifest, judged, watch)

    def _train(
        self,
        rows: Dataset,
        member: MemberRecipe,
        ensemble: EnsembleRecipe,
        folder: Path,
        watch: Watch,
    ) -> Path:
        job = Job(
            title=f"{ensemble.name}/{member.name} on {len(rows)} rows",
            member=member,
            number=0,
            ensemble=ensemble,
            labels=self.labels,
            data=self.recipe.data,
            precision=self.recipe.precision,
            base=self.base,
            bundle=folder / "bundle",
            before=(),
            checkpoints=folder / "checkpoints",
            target=folder / "trained",
        )
        try:
            job.train(rows, watch)
        finally:
            watch.end(job.title)
        return job.target


class _Stopwatch(Unwatched):
    """Measures the time from the first step of training to its end."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._begun = 0.0

    def begin(self, title: str, total: int, done: int = 0) -> None:
        self._begun = monotonic()

    def reach(self, title: str, done: int, loss: float | None = None) -> None:
        self.seconds = monotonic() - self._begun


def _steps(member: MemberRecipe, rows: int) -> int:
    """Return how many steps the training of a member takes."""
    [stage] = member.stages
    own = len(bag(rows, member.bag, member.seed))
    return stage.epochs * math.ceil(own / stage.batch_size)

"""Jobs and workers. A job is one stage of one member. It holds paths and recipes but no models, so that it can be sent
to another process."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from datasets import Dataset

from serve.bundle import Bundle
from training.offline.teacher import find_teacher
from training.progress import Watch
from training.recipe import DataRecipe, DistillationStage, EnsembleRecipe, MemberRecipe
from training.recipe.values import EventLog
from training.stages.base import Base
from training.stages.fit import Precision, Stage
from training.stages.member import MemberData, MemberStage, train_stage


@dataclass(frozen=True)
class Job:
    """Everything that a worker needs to train one stage of one member."""

    title: str
    member: MemberRecipe
    number: int
    """The index of the stage among the member's stages, from 0."""
    ensemble: EnsembleRecipe
    labels: Sequence[str]
    data: DataRecipe
    precision: Precision
    base: Base
    bundle: Path
    before: Sequence[Path]
    """The folders of the adapters from the stages before this one."""
    checkpoints: Path
    target: Path
    report_to: Sequence[EventLog] = ()
    events: Path | None = None

    def train(self, rows: Dataset, watch: Watch) -> None:
        """Train the adapter on the member's bag of `rows`; write it to `target`. Raises RecipeError and BundleError."""
        recipe, teacher = self.member.stages[self.number], None
        if isinstance(recipe, DistillationStage):
            bundle = Bundle.open(self.bundle)
            teacher = find_teacher(recipe.teacher, self.ensemble, self.labels, bundle)
        data = MemberData.of(rows, self.labels, self.data)
        train_stage(
            MemberStage(self.member, recipe, self.before, teacher),
            self.ensemble,
            self.base,
            data,
            Stage(self.title, self.checkpoints, self.precision, watch, self.report_to, self.events),
            self.target,
        )


class Workers(Protocol):
    """Trains jobs, in this process or in others."""

    def train(self, job: Job) -> None:
        """Train the job's adapter; return when it is in its folder. Raises what the training raised."""


class LocalWorkers:
    """Trains jobs in this process."""

    def __init__(self, rows: Dataset, watch: Watch) -> None:
        self._rows = rows
        self._watch = watch

    def train(self, job: Job) -> None:
        job.train(self._rows, self._watch)

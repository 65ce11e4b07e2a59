"""Hyperparameter search. A trial trains members on one part of the training rows and is judged on the other part.

The choice never uses the validation rows, on which the fusion is fitted."""

import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TypeVar

from datasets import Dataset
from pydantic import BaseModel, ConfigDict

from serve.bundle import BaseSpec, Bundle
from serve.manifest import Member
from training.data.cleaning.families import families_of
from training.data.splits import hold_out
from training.evaluation.evaluation import Evaluation, labelled
from training.evaluation.tables import HEADINGS
from training.execution.jobs import Job
from training.execution.run import Run
from training.manifest import draft
from training.progress import Unwatched, Watch
from training.recipe import (
    METRICS,
    EnsembleRecipe,
    MemberRecipe,
    Recipe,
    RecipeError,
    SearchRecipe,
    Values,
)
from training.stages.base import Base

AnyMember = TypeVar("AnyMember", bound=MemberRecipe)


class SearchTrial(BaseModel):
    """One trial: the drawn values and their score. A failed trial has no score."""

    model_config = ConfigDict(frozen=True)

    values: dict[str, bool | int | float | str]
    score: float | None


class Found(BaseModel):
    """A finished search: the best values, their score, and all trials."""

    model_config = ConfigDict(frozen=True)

    title: str
    values: dict[str, bool | int | float | str]
    metric: str
    score: float
    rows: int
    """The number of training rows that trials were judged on."""
    method: str
    trials: list[SearchTrial]

    @property
    def ensemble(self) -> str:
        return self.title.partition("/")[0]

    def line(self) -> str:
        failed = sum(trial.score is None for trial in self.trials)
        return (
            f"search {self.title}: {_said(self.values)}; {HEADINGS[self.metric]} {self.score:.4f} on {self.rows} "
            f"training rows held out, the best of {len(self.trials)} trials ({self.method})"
            + (f", of which {failed} failed" if failed else "")
        )


@dataclass(frozen=True)
class Study:
    """What a trial needs besides its rows. It holds no models, so that it can be sent to other processes."""

    title: str
    search: SearchRecipe
    recipe: Recipe
    ensemble: EnsembleRecipe
    """The ensemble, with only the members that are searched together."""
    labels: Sequence[str]
    base: Base

    @property
    def metric(self) -> str:
        return self.search.metric_for(self.ensemble.task)

    @property
    def lower_is_better(self) -> bool:
        return METRICS[self.ensemble.task][self.metric] == "min"

    def parts(self, rows: Dataset) -> tuple[Dataset, Dataset]:
        """Return the rows that trials are trained on, and the rows that they are judged on.

        Families stay together, so that no trial is judged on texts it was trained on. Raises RecipeError if no rows can
        be held out, because there are too few or all are in one family."""
        data = self.recipe.data
        families = families_of(rows, data.inputs)
        kept, held = hold_out(families, self.search.held_out, self.recipe.seed)
        if not held:
            raise RecipeError(
                f"search {self.title}: none of {len(rows)} training rows can be held out to judge trials; there are "
                "too few rows, or all have the same text or group"
            )
        return rows.select(kept), rows.select(held)

    def score(self, values: Values, train: Dataset, judge: Dataset, watch: Watch) -> float:
        """Train and judge one trial. Returns the score of the member with these values, or of the average of several
        members. Raises RecipeError."""
        with tempfile.TemporaryDirectory(prefix="choir-trial-") as scratch:
            folder = Path(scratch)
            spec = BaseSpec(path=str(self.base.folder.resolve()), kind=self.recipe.base.bundle_kind)
            bundle = Bundle.create(folder / "bundle", spec)
            members = [
                self._trained(member, values, train, bundle, folder, watch)
                for member in self.ensemble.members
            ]
            manifest = draft(self.ensemble, members, self.labels)
            rows = labelled(judge, "trial", self.recipe, self.ensemble)
            limit = self.ensemble.max_new_tokens
            evaluation = Evaluation(bundle, manifest, Unwatched(), max_new_tokens=limit)
            report = evaluation.report(manifest, rows)
        name = members[0].name if len(members) == 1 else "average"
        kind = "member" if len(members) == 1 else "fusion"
        row = next(row for row in report.rows if (row.name, row.kind) == (name, kind))
        return row.scores[self.metric]

    def _trained(
        self,
        recipe: MemberRecipe,
        values: Values,
        rows: Dataset,
        bundle: Bundle,
        folder: Path,
        watch: Watch,
    ) -> Member:
        try:
            member = recipe.with_values(values)
        except ValueError as error:
            raise RecipeError(str(error)) from None
        job = Job(
            title=f"{self.ensemble.name}/{member.name}: {_said(values)}",
            member=member,
            number=0,
            ensemble=self.ensemble,
            labels=self.labels,
            data=self.recipe.data,
            precision=self.recipe.precision,
            base=self.base,
            bundle=bundle.path,
            before=(),
            checkpoints=folder / "checkpoints" / member.name,
            target=folder / "trained" / member.name,
        )
        try:
            job.train(rows, watch)
        finally:
            # The row of progress ends even if the trial failed: other trials follow.
            watch.end(job.title)
        return Member(name=member.name, adapters=[bundle.add_adapter(member.name, job.target)])


class Searches:
    """Runs the searches of a recipe. A search that an earlier run finished is not repeated."""

    def __init__(
        self,
        recipe: Recipe,
        run: Run,
        base: Base,
        labels: Mapping[str, Sequence[str]],
        tune: Callable[[Study, Path], Found],
    ) -> None:
        """`labels` maps each ensemble's name to its labels. `tune` runs a study's trials and keeps their scores in the
        given folder."""
        self._recipe = recipe
        self._run = run
        self._base = base
        self._labels = labels
        self._tune = tune

    def chosen(self) -> Recipe:
        """Return the recipe with the found values in the stages of its members. Raises RecipeError."""
        ensembles = [self._ensemble(each) for each in self._recipe.ensembles]
        return self._recipe.model_copy(update={"ensembles": ensembles})

    def _ensemble(self, ensemble: EnsembleRecipe) -> EnsembleRecipe:
        if ensemble.search is not None:
            values = self._found(ensemble.name, ensemble.search, ensemble).values
            members = [each.with_values(values) for each in ensemble.members]
            candidates = [each.with_values(values) for each in ensemble.candidates]
        else:
            members = [self._member(each, ensemble) for each in ensemble.members]
            candidates = [self._member(each, ensemble) for each in ensemble.candidates]
        return ensemble.model_copy(update={"members": members, "candidates": candidates})

    def _member(self, member: AnyMember, ensemble: EnsembleRecipe) -> AnyMember:
        if member.search is None:
            return member
        alone = ensemble.model_copy(update={"members": [member]})
        found = self._found(f"{ensemble.name}/{member.name}", member.search, alone)
        return member.with_values(found.values)

    def _found(self, title: str, search: SearchRecipe, ensemble: EnsembleRecipe) -> Found:
        step = f"search {title}"
        if self._run.result(step) is None:
            labels = self._labels[ensemble.name]
            study = Study(title, search, self._recipe, ensemble, labels, self._base)
            kept = self._run.folder / "search" / title
            self._run.finish(step, self._tune(study, kept).model_dump())
            shutil.rmtree(kept, ignore_errors=True)
        return Found.model_validate(self._run.result(step))


def all_found(run: Run) -> list[Found]:
    """Return the finished searches of a run, in the order of finishing."""
    return [Found.model_validate(each) for each in run.results("search ")]


def demand_method(recipe: Recipe) -> None:
    """Check that the libraries of the recipe's searches are installed. Raises RecipeError otherwise."""
    for ensemble in recipe.ensembles:
        by_tpe = any(search.method == "tpe" for search in ensemble.searches)
        if by_tpe and find_spec("optuna") is None:
            raise RecipeError(
                f"ensemble {ensemble.name!r}: the search method tpe needs Optuna, which is not installed; install "
                "Choir with the extra `search`, or use the method random"
            )


def _said(values: Values) -> str:
    return ", ".join(
        f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
        for key, value in values.items()
    )

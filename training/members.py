"""Trains the members of an ensemble: each stage once, with the finished adapters in the bundle."""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path

from serve.bundle import Bundle
from serve.manifest import AdapterRef, Member
from training.evaluation.stage_gains import StageGains
from training.execution.jobs import Job, Workers
from training.execution.run import Run
from training.recipe import (
    CandidateRecipe,
    DistillationStage,
    EnsembleRecipe,
    MemberRecipe,
    Recipe,
)
from training.stages.base import Base

CANDIDATES = "candidates"
"""Folder in the bundle for adapters that no ensemble uses yet."""


class Members:
    """Trains the members of a recipe's ensembles. A stage that an earlier run finished is not trained again."""

    def __init__(
        self,
        recipe: Recipe,
        run: Run,
        base: Base,
        bundle: Bundle,
        stage_gains: StageGains | None,
        workers: Workers,
        fused: Mapping[str, Future[None]],
    ) -> None:
        """Without `stage_gains`, no stage is judged. `fused` holds a future for each ensemble, which is done when the
        ensemble is fused and can teach."""
        self._recipe = recipe
        self._run = run
        self._base = base
        self._bundle = bundle
        self._stage_gains = stage_gains
        self._workers = workers
        self._fused = fused

    def outstanding(self, ensemble: EnsembleRecipe) -> Iterator[str]:
        """Yield the titles of the stages that are not trained yet."""
        rivals = [ensemble.rival] if ensemble.rival else []
        for member in [*ensemble.members, *ensemble.candidates, *rivals]:
            for number in range(len(member.stages)):
                if self._run.result(_step(ensemble, member, number)) is None:
                    yield _title(ensemble, member, number)

    def member(
        self, recipe: MemberRecipe, ensemble: EnsembleRecipe, labels: Sequence[str]
    ) -> Member:
        """Train a member if needed, and return it with its adapters in the bundle."""
        step = f"member {ensemble.name}/{recipe.name}"
        if self._run.result(step) is None:
            trained = self._train(recipe, ensemble, labels)
            names = recipe.adapter_names(ensemble.name)
            refs = [
                self._bundle.add_adapter(name, folder)
                for name, folder in zip(names, trained, strict=True)
            ]
            self._run.finish(step, [ref.model_dump() for ref in refs])
        shutil.rmtree(self._folder(recipe, ensemble), ignore_errors=True)
        adapters = [AdapterRef.model_validate(ref) for ref in self._run.result(step) or []]
        return Member(name=recipe.name, adapters=adapters)

    def candidate(
        self, recipe: CandidateRecipe, ensemble: EnsembleRecipe, labels: Sequence[str]
    ) -> list[Path]:
        """Train a candidate if needed. Return the folder of its adapter, or of each of its two adapters."""
        step = f"candidate {ensemble.name}/{recipe.name}"
        if self._run.result(step) is None:
            target = self._bundle.path / CANDIDATES / recipe.folder(ensemble.name)
            shutil.rmtree(target, ignore_errors=True)
            trained = self._train(recipe, ensemble, labels)
            for number, (stage, folder) in enumerate(zip(recipe.adapters, trained, strict=True)):
                several = len(trained) > 1
                place = target / f"{number + 1}-{stage.kind}" if several else target
                shutil.copytree(folder, place)
            relative = str(target.relative_to(self._bundle.path))
            self._run.finish(step, {"member": recipe.member, "folder": relative})
        shutil.rmtree(self._folder(recipe, ensemble), ignore_errors=True)
        folder = self._bundle.path / self._run.result(step)["folder"]  # type: ignore[index]
        return sorted(folder.iterdir()) if len(recipe.adapters) > 1 else [folder]

    def _train(
        self, member: MemberRecipe, ensemble: EnsembleRecipe, labels: Sequence[str]
    ) -> list[Path]:
        """Train the member's stages that are not finished, and return the folders of its adapters."""
        adapters: list[Path] = []
        for number, recipe in enumerate(member.stages):
            folder = self._folder(member, ensemble) / f"{number + 1}-{recipe.kind}"
            step = _step(ensemble, member, number)
            goes_on = isinstance(recipe, DistillationStage)
            if self._run.result(step) is None:
                if isinstance(recipe, DistillationStage) and recipe.teacher.taught_by:
                    self._fused[recipe.teacher.taught_by].result()
                title = _title(ensemble, member, number)
                with self._run.stage(title, self._recipe.precision) as stage:
                    job = Job(
                        title=title,
                        member=member,
                        number=number,
                        ensemble=ensemble,
                        labels=labels,
                        data=self._recipe.data,
                        precision=stage.precision,
                        base=self._base,
                        bundle=self._bundle.path,
                        before=tuple(adapters),
                        checkpoints=stage.folder,
                        target=folder,
                        report_to=stage.report_to,
                        events=stage.events,
                    )
                    self._workers.train(job)
                self._run.finish(step, True)
            adapters = [*adapters[:-1], folder] if goes_on else [*adapters, folder]
            judged = len(member.stages) > 1 and not isinstance(member, CandidateRecipe)
            if judged and self._stage_gains is not None:
                chain = " + ".join(stage.kind for stage in member.stages[: number + 1])
                self._stage_gains.judge(
                    f"{member.name}: {chain}", adapters, ensemble, labels, self._base.folder
                )
        return adapters

    def _folder(self, member: MemberRecipe, ensemble: EnsembleRecipe) -> Path:
        return self._run.folder / "trained" / ensemble.name / member.name


def _step(ensemble: EnsembleRecipe, member: MemberRecipe, number: int) -> str:
    return f"stage {ensemble.name}/{member.name}/{number + 1}"


def _title(ensemble: EnsembleRecipe, member: MemberRecipe, number: int) -> str:
    name = f"{ensemble.name}/{member.name}"
    return f"{name}/{member.stages[number].kind}" if len(member.stages) > 1 else name

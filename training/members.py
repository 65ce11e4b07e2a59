"""The members of an ensemble: each stage trained once, its adapters put into the bundle."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from serve.bundle import AdapterRef, Bundle, Member
from training.data.splits import Splits
from training.gains import Gains
from training.recipe import (
    CandidateRecipe,
    DistillationStage,
    EnsembleRecipe,
    MemberRecipe,
    Recipe,
)
from training.run import Run
from training.stages.base import Base
from training.stages.member import MemberData, MemberStage, train_stage
from training.teacher import find_teacher

CANDIDATES = "candidates"
"""Folder below the bundle for adapters that no ensemble uses yet."""


class Members:
    """Trains the members of a recipe's ensembles; a stage that an earlier run finished is not trained again."""

    def __init__(
        self, recipe: Recipe, run: Run, splits: Splits, base: Base, bundle: Bundle, gains: Gains
    ) -> None:
        self._recipe = recipe
        self._run = run
        self._splits = splits
        self._base = base
        self._bundle = bundle
        self._gains = gains

    def member(
        self, recipe: MemberRecipe, ensemble: EnsembleRecipe, labels: Sequence[str]
    ) -> Member:
        """The member with its adapters in the bundle."""
        name, step = f"{ensemble.name}-{recipe.name}", f"member {ensemble.name}/{recipe.name}"
        if self._run.result(step) is None:
            trained = self._train(recipe, ensemble, labels)
            refs = [
                # A member's second adapter is named after what it is.
                self._bundle.add_adapter(f"{name}-{stage.kind}" if number else name, folder)
                for number, (stage, folder) in enumerate(zip(recipe.adapters, trained, strict=True))
            ]
            self._run.finish(step, [ref.model_dump() for ref in refs])
        shutil.rmtree(self._folder(recipe, ensemble), ignore_errors=True)
        adapters = [AdapterRef.model_validate(ref) for ref in self._run.result(step) or []]
        return Member(name=recipe.name, adapters=adapters)

    def candidate(
        self, recipe: CandidateRecipe, ensemble: EnsembleRecipe, labels: Sequence[str]
    ) -> list[Path]:
        """The folders of a member outside the ensemble: its adapter's, or one below it for each of two."""
        step = f"candidate {ensemble.name}/{recipe.name}"
        if self._run.result(step) is None:
            target = self._bundle.path / CANDIDATES / f"{ensemble.name}-{recipe.name}"
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
        """The folders of the member's adapters."""
        options = self._recipe.data
        data = MemberData(
            self._splits.train, options.text, labels, options.max_tokens, options.text_pair
        )
        name, several = f"{ensemble.name}/{member.name}", len(member.stages) > 1
        adapters: list[Path] = []
        for number, recipe in enumerate(member.stages, start=1):
            folder = self._folder(member, ensemble) / f"{number}-{recipe.kind}"
            step = f"stage {name}/{number}"
            goes_on = isinstance(recipe, DistillationStage)
            if self._run.result(step) is None:
                title = f"{name}/{recipe.kind}" if several else name
                teacher = None
                if isinstance(recipe, DistillationStage):
                    teacher = find_teacher(recipe.teacher, ensemble, labels, self._bundle)
                own = MemberStage(member, recipe, tuple(adapters), teacher)
                with self._run.stage(title, self._recipe.precision) as stage:
                    train_stage(own, ensemble, self._base, data, stage, folder)
                self._run.finish(step, True)
            adapters = [*adapters[:-1], folder] if goes_on else [*adapters, folder]
            if several and not isinstance(member, CandidateRecipe):
                chain = " + ".join(stage.kind for stage in member.stages[:number])
                self._gains.judge(
                    f"{member.name}: {chain}", adapters, ensemble, labels, self._base.folder
                )
        return adapters

    def _folder(self, member: MemberRecipe, ensemble: EnsembleRecipe) -> Path:
        return self._run.folder / "trained" / f"{ensemble.name}-{member.name}"

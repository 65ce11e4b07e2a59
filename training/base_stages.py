"""The base that all members share: found or trained from scratch, and then trained further by the base's stages."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from serve.base.side_files import copy_pooling
from serve.labels import fill
from training.data.splits import Splits
from training.evaluation.stage_gains import StageGains
from training.execution.run import Run
from training.recipe import (
    EnsembleRecipe,
    FineTuningStage,
    PretrainingStage,
    Recipe,
    default_objective,
)
from training.stages.base import Base, find_base
from training.stages.documents import Documents
from training.stages.fine_tuning import save_average, tune_base
from training.stages.fit import FitOptions, Stage
from training.stages.member import MemberData
from training.stages.pretraining import Pretrained, model_of, pretrain, save_pretrained
from training.stages.scratch import train_base

VOCABULARY_WEIGHT = 20
"""How often a label's text is repeated when the tokenizer is trained, so that short labels become one token."""


class BaseStages:
    """Makes the base, stage by stage. A stage that an earlier run finished is not trained again."""

    def __init__(
        self,
        recipe: Recipe,
        run: Run,
        splits: Splits,
        labels: Mapping[str, Sequence[str]],
        stage_gains: StageGains,
    ) -> None:
        """`labels` maps each ensemble's name to its labels."""
        self._recipe = recipe
        self._run = run
        self._splits = splits
        self._labels = labels
        self._stage_gains = stage_gains

    def make(self, own: Path) -> Base:
        """Return the finished base. It lies in the bundle's folder `own` if it is trained or copied. Raises
        RecipeError."""
        recipe, name = self._recipe.base, self._recipe.name
        if not recipe.stages:
            self._from_nothing(own)
            return find_base(recipe, name, own)
        work = self._run.folder / "base"
        if self._run.result("shared stages") is None:
            self._from_nothing(work / "0")
            found = recipe.model_copy(update={"stages": []})
            base = find_base(found, name, work / "0")
            self._judge("base", base)
            chain = "base"
            for number, stage in enumerate(recipe.stages, start=1):
                chain += f" + {stage.kind}"
                base = self._trained(f"base {number}/{stage.kind}", stage, base, work / str(number))
                self._judge(chain, base)
            shutil.rmtree(own, ignore_errors=True)
            shutil.copytree(base.folder, own)
            self._run.finish("shared stages", True)
        shutil.rmtree(work, ignore_errors=True)
        return find_base(recipe, name, own)

    def _from_nothing(self, target: Path) -> None:
        scratch = self._recipe.base.scratch
        if scratch is None or self._run.result("base") is not None:
            return
        texts = [text for ensemble in self._recipe.ensembles for text in _vocabulary(ensemble)]
        with self._run.stage("base", self._recipe.precision) as stage:
            found = train_base(scratch, self._splits.train, texts, target, self._recipe.seed, stage)
        self._run.finish("base", asdict(found))

    def _trained(
        self, title: str, recipe: PretrainingStage | FineTuningStage, base: Base, target: Path
    ) -> Base:
        if self._run.result(title) is None:
            if isinstance(recipe, FineTuningStage):
                self._tuned(title, recipe, base, target)
                self._run.finish(title, True)
            else:
                with self._run.stage(title, self._recipe.precision) as stage:
                    self._run.finish(title, asdict(self._pretrained(recipe, base, stage, target)))
        copy_pooling(base.folder, target)
        return replace(base, folder=target)

    def _tuned(self, title: str, recipe: FineTuningStage, base: Base, target: Path) -> None:
        if recipe.soup == 1:
            self._tuned_once(title, recipe, base, self._recipe.seed, target)
            return
        runs = [target.with_name(f"{target.name}.{run}") for run in range(1, recipe.soup + 1)]
        for run, folder in enumerate(runs):
            step = f"{title}/{run + 1}"
            if self._run.result(step) is None:
                self._tuned_once(step, recipe, base, self._recipe.seed + run, folder)
                self._run.finish(step, True)
        save_average([replace(base, folder=folder) for folder in runs], target)

    def _tuned_once(
        self, title: str, recipe: FineTuningStage, base: Base, seed: int, target: Path
    ) -> None:
        with self._run.stage(title, self._recipe.precision) as stage:
            tune_base(recipe, self._tasks(recipe), base, seed, stage, target)

    def _pretrained(
        self, recipe: PretrainingStage, base: Base, stage: Stage, target: Path
    ) -> Pretrained:
        objective = recipe.objective or default_objective(base.kind)
        documents = Documents.of(self._splits.train, recipe.documents)
        options = FitOptions(
            recipe.epochs,
            recipe.batch_size,
            recipe.learning_rate,
            self._recipe.seed,
            recipe.early_stopping,
        )
        tokenizer, model = base.tokenizer(), model_of(base.folder, objective)
        found = pretrain(model, tokenizer, documents, objective, options, stage)
        save_pretrained(model, tokenizer, target)
        return found

    def _tasks(self, recipe: FineTuningStage) -> list[tuple[EnsembleRecipe, MemberData]]:
        options = self._recipe.data
        return [
            (
                ensemble,
                MemberData(
                    self._splits.train,
                    options.text,
                    self._labels[ensemble.name],
                    options.max_tokens,
                    options.text_pair,
                ),
            )
            for ensemble in self._recipe.ensembles
            if ensemble.name in (recipe.ensembles or self._labels)
        ]

    def _judge(self, chain: str, base: Base) -> None:
        """Record the figures of the base alone. If members answer by heads, the base alone gives no answers."""
        if not base.by_heads:
            for ensemble in self._recipe.ensembles:
                self._stage_gains.judge(
                    chain, [], ensemble, self._labels[ensemble.name], base.folder
                )


def _vocabulary(ensemble: EnsembleRecipe) -> list[str]:
    """Return prompts and labels, repeated so that the tokenizer learns their words."""
    prompt = fill(ensemble.template, "")
    return [
        prompt + text
        for text in ["", *ensemble.verbalizers.values()]
        for _ in range(VOCABULARY_WEIGHT)
    ]

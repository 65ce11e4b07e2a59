"""The base that all members share: found or trained from scratch, and then trained further by the base's stages."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from serve.base.side_files import copy_side_files
from serve.labels import fill
from serve.prompting.zero_shot import label_prompts
from training.data.splits import Splits
from training.evaluation.stage_gains import StageGains
from training.execution.run import Run
from training.recipe import (
    EnsembleRecipe,
    FineTuningStage,
    PretrainingStage,
    Recipe,
    RecipeError,
    default_objective,
)
from training.stages.base import Base, find_base
from training.stages.documents import Documents
from training.stages.fine_tuning import save_average, tune_base
from training.stages.fit import FitOptions, Stage
from training.stages.member import MemberData
from training.stages.pretraining import Pretrained, masked_model, pretrain, save_pretrained
from training.stages.scratch import train_base
from training.stages.towers.contrastive import train_on_captions
from training.stages.towers.inputs import TowerInputs
from training.stages.towers.scratch import train_towers
from training.stages.vision_language.documents import pretrain_on_images
from training.stages.vision_language.prompts import ImagePrompts
from training.stages.vision_language.scratch import train_idefics3

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
            return self._found(own)
        work = self._run.folder / "base"
        if self._run.result("shared stages") is None:
            self._from_nothing(work / "0")
            found = recipe.model_copy(update={"stages": []})
            base = find_base(found, name, work / "0")
            self._check_reads(base)
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
        return self._found(own)

    def _found(self, own: Path) -> Base:
        base = find_base(self._recipe.base, self._recipe.name, own)
        self._check_reads(base)
        return base

    def _check_reads(self, base: Base) -> None:
        """Raise RecipeError if rows are images or labels are prompts, and the base does not read them."""
        prompted = [each.name for each in self._recipe.ensembles if each.prompts]
        if prompted and not base.towers:
            raise RecipeError(
                f"ensemble {prompted[0]!r}: prompts need a base with two towers: a CLIP or a SigLIP"
            )
        if self._recipe.data.images and not (base.towers or base.writes_about_images):
            raise RecipeError(
                "data.image needs a base that reads images: a CLIP, a SigLIP, an Idefics3 or a LLaVA"
            )

    def _from_nothing(self, target: Path) -> None:
        scratch = self._recipe.base.scratch
        if scratch is None or self._run.result("base") is not None:
            return
        texts = [
            text
            for ensemble in self._recipe.ensembles
            for text in _vocabulary(ensemble, self._labels[ensemble.name])
        ]
        rows, seed, image = self._splits.train, self._recipe.seed, self._recipe.data.image
        with self._run.stage("base", self._recipe.precision) as stage:
            if scratch.has_towers:
                train_towers(scratch, rows, image, texts, target, seed, stage)
                self._run.finish("base", True)
                return
            if scratch.reads_images:
                assert image is not None, "the recipe was checked"
                found = train_idefics3(scratch, rows, image, texts, target, seed, stage)
                self._run.finish("base", asdict(found))
                return
            found = train_base(scratch, rows, texts, target, seed, stage)
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
                    found = self._pretrained(recipe, base, stage, target)
                self._run.finish(title, asdict(found) if found else True)
        copy_side_files(base.folder, target)
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
    ) -> Pretrained | None:
        """Return the losses on held-out documents; None of a base that learns captions of images."""
        objective = recipe.objective or default_objective(base.kind)
        documents = Documents.of(self._splits.train, recipe.documents)
        options = FitOptions(
            recipe.epochs,
            recipe.batch_size,
            recipe.learning_rate,
            self._recipe.seed,
            recipe.early_stopping,
        )
        if base.towers:
            if recipe.objective:
                raise RecipeError(
                    "base: a CLIP or SigLIP learns captions of images; leave out objective"
                )
            model, rows, image = base.model(), self._splits.train, self._recipe.data.image
            inputs = TowerInputs(str(base.folder))
            train_on_captions(model, inputs, rows, image, recipe.documents, options, stage)
            model.save_pretrained(target)
            base.tokenizer().save_pretrained(target)
            return None
        if base.writes_about_images and self._recipe.data.image:
            model, tokenizer = base.model(), base.tokenizer()
            prompts, image = ImagePrompts(str(base.folder)), self._recipe.data.image
            rows, templates = self._splits.train, recipe.documents
            found = pretrain_on_images(
                model, tokenizer, prompts, rows, image, templates, options, stage
            )
            model.save_pretrained(target)
            tokenizer.save_pretrained(target)
            return found
        causal = objective == "autoregressive"
        model = base.model() if causal else masked_model(base.folder, objective)
        tokenizer = base.tokenizer()
        found = pretrain(model, tokenizer, documents, objective, options, stage)
        save_pretrained(model, tokenizer, target)
        return found

    def _tasks(self, recipe: FineTuningStage) -> list[tuple[EnsembleRecipe, MemberData]]:
        rows, options = self._splits.train, self._recipe.data
        return [
            (ensemble, MemberData.of(rows, self._labels[ensemble.name], options))
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


def _vocabulary(ensemble: EnsembleRecipe, labels: Sequence[str]) -> list[str]:
    """Return prompts and labels, repeated so that the tokenizer learns their words."""
    if ensemble.prompts:
        return label_prompts(ensemble.prompts, labels, ensemble.verbalizers)
    prompt = fill(ensemble.template, "")
    return [
        prompt + text
        for text in ["", *ensemble.verbalizers.values()]
        for _ in range(VOCABULARY_WEIGHT)
    ]

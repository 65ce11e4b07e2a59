"""Distils a finished ensemble into one adapter, which answers at one pass (`choir distil`)."""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from datasets import Dataset, concatenate_datasets
from numpy.typing import NDArray

from serve.adapter.folder import read_config
from serve.bundle import Bundle
from serve.fusion.fitting.fit import fit_fusion
from serve.fusion.fitting.stored_scores import ValidationRows
from serve.fusion.fused import Answers
from serve.manifest import Ensemble, FusionSpec, Member, Method
from training.data.loading import load_rows
from training.data.splits import Splits
from training.data.variations import variations
from training.evaluation.evaluation import answer_metrics, labelled
from training.execution.jobs import Job
from training.execution.run import WORK, recorded_data, recorded_recipe
from training.lone_rung import write_lone_rung
from training.preparation import load_splits
from training.progress import Watch
from training.recipe import (
    DistillationStage,
    EnsembleRecipe,
    MemberRecipe,
    PTuningStage,
    Recipe,
    RecipeError,
    TeacherRecipe,
)
from training.stages.base import Base, from_hub

NAME = "distilled"
"""The name of the rung, and of its only member."""
FIGURES = ("accuracy", "log_loss")
"""The figures by which a student is compared with its teacher."""


@dataclass(frozen=True)
class DistilOptions:
    """How the student learns."""

    epochs: int
    """Passes over the training rows, the unlabelled ones and the variations."""
    variations: int
    """How many unlabelled texts are made from each training text."""
    temperature: float = 2.0
    hard: float = 0.1


@dataclass(frozen=True)
class Distilled:
    """A student beside its teacher and the best member: their figures on the validation rows."""

    best: str
    """The member with the lowest log loss."""
    method: str
    """The ensemble's fusion."""
    scores: Mapping[str, Mapping[str, float]]
    """`best`, `ensemble` and `distilled`, each with figures by name."""
    rows: int
    """The number of the validation rows."""
    passes: int
    """The passes of the ensemble for one answer."""
    manifest: Path
    """The file that a swap serves."""

    @property
    def kept(self) -> float | None:
        """The share of the ensemble's gain in log loss over the best member that the student keeps; None if the
        ensemble has no gain."""
        best, fused, own = (
            self.scores[name]["log_loss"] for name in ("best", "ensemble", "distilled")
        )
        return (best - own) / (best - fused) if fused < best else None


def distil(
    bundle_path: Path, name: str, unlabelled: Path | None, options: DistilOptions, watch: Watch
) -> Distilled:
    """Train one adapter on what the ensemble `name` answers to all training rows, to variations of them and to the
    texts in `unlabelled`, and on the rows' labels. Write it into the bundle as the rung `distilled`.

    The student goes on from the member that is best on the validation rows, and has its rank. Raises RecipeError if the
    bundle lacks its recipe or the recipe's rows, or if the ensemble's task has no labels to choose among; and
    BundleError."""
    bundle = Bundle.open(bundle_path)
    ensemble = bundle.ensemble(name)
    recipe, own, splits = _trained_here(bundle, ensemble)
    stored = _Validation.read(bundle, ensemble)
    alone = {each.name: stored.alone(each) for each in ensemble.members}
    best = min(
        (each for each in own.members if _can_go_on(each)),
        key=lambda each: alone[each.name]["log_loss"],
        default=None,
    )
    if best is None:
        raise RecipeError(
            f"{ensemble.id}: none of its members can be trained further: the MLP that made their virtual tokens was "
            "not kept"
        )
    start = next(member for member in ensemble.members if member.name == best.name)
    rows = _rows_to_learn(recipe, own, splits.train, unlabelled, options)
    with tempfile.TemporaryDirectory(prefix="distilled-", dir=bundle.path / WORK) as scratch:
        job = _job(bundle, ensemble, recipe, own, best, start, options, Path(scratch))
        job.train(rows, watch)
        watch.end(job.title)
        ref = bundle.add_adapter(f"{name[:53]}-{NAME}", job.target)
    student = Member(name=NAME, adapters=[*start.adapters[:-1], ref])
    note = {"from": best.name, "epochs": options.epochs, "variations": options.variations}
    validation = labelled(splits.validation, "validation", recipe, own)
    rung = write_lone_rung(bundle, ensemble, student, "distilled", validation, note, watch)
    assert rung.validation is not None, "only generation has no stored validation rows"
    return Distilled(
        best=min(alone, key=lambda member: alone[member]["log_loss"]),
        method=_teaches_by(ensemble),
        passes=len(ensemble.members),
        scores={
            "best": min(alone.values(), key=lambda scores: scores["log_loss"]),
            "ensemble": stored.fused(),
            "distilled": stored.figures(rung.validation),
        },
        rows=len(stored.rows.truth),
        manifest=rung.file,
    )


def _trained_here(bundle: Bundle, ensemble: Ensemble) -> tuple[Recipe, EnsembleRecipe, Splits]:
    """Return the recipe that made the bundle, its part on the ensemble, and the same rows as then."""
    if ensemble.task != "classification":
        raise RecipeError(
            f"{ensemble.id} is for {ensemble.task}; distil is for classification (a recipe's stage `distillation` also "
            "teaches generation)"
        )
    recipe = recorded_recipe(bundle.path)
    own = recipe.find(ensemble.name) if recipe else None
    if recipe is None or own is None:
        raise RecipeError(
            f"{bundle.path} does not say which rows {ensemble.id} was trained on; distil needs a bundle that "
            "`choir train` made"
        )
    splits = load_splits(recipe, bundle.path / WORK)
    if splits.digest() != recorded_data(bundle.path):
        raise RecipeError(
            f"the recipe's rows are not those that {bundle.path} was trained on: the data files have changed, or this "
            "version of Choir prepares them differently; train the bundle again"
        )
    return recipe, _with_found(own, ensemble), splits


def _with_found(own: EnsembleRecipe, ensemble: Ensemble) -> EnsembleRecipe:
    """Return the recipe with the values that searches found, as the manifest has them."""
    found = ensemble.scores.get("search", {})
    members = []
    for member in own.members:
        values = found.get(f"{own.name}/{member.name}") or found.get(own.name)
        members.append(member.with_values(values) if values else member)
    return own.model_copy(update={"members": members})


def _can_go_on(member: MemberRecipe) -> bool:
    """Whether the member's last adapter can be trained further."""
    last = member.adapters[-1]
    return not isinstance(last, PTuningStage) and not getattr(last, "projection", None)


def _teaches_by(ensemble: Ensemble) -> Method:
    """Return the method by which the ensemble teaches. Shares of votes say nothing about labels without a vote."""
    return "average" if ensemble.fusion.method == "vote" else ensemble.fusion.method


def _rows_to_learn(
    recipe: Recipe,
    own: EnsembleRecipe,
    train: Dataset,
    unlabelled: Path | None,
    options: DistilOptions,
) -> Dataset:
    """Return the training rows, and rows without an answer: variations of their texts, and the texts of a file."""
    text, pair = recipe.data.text, recipe.data.text_pair
    columns = [text, *([pair] if pair else [])]
    parts = [train.select_columns([*columns, own.answer])]
    if options.variations and not pair:
        made = variations(list(train[text]), options.variations, recipe.seed)
        parts.append(Dataset.from_dict({text: made}))
    if unlabelled is not None:
        parts.append(load_rows([unlabelled], columns).rows)
    return concatenate_datasets(parts)


def _job(
    bundle: Bundle,
    ensemble: Ensemble,
    recipe: Recipe,
    own: EnsembleRecipe,
    best: MemberRecipe,
    start: Member,
    options: DistilOptions,
    scratch: Path,
) -> Job:
    """Return the job that trains the adapter of `best` further, on what the whole ensemble answers."""
    stages = [each for each in best.stages if not isinstance(each, DistillationStage)]
    last = best.adapters[-1]
    learns = DistillationStage(
        teacher=TeacherRecipe(ensemble=ensemble.name),
        epochs=options.epochs,
        batch_size=last.batch_size,
        learning_rate=last.learning_rate,
        temperature=options.temperature,
        hard=options.hard,
    )
    student = MemberRecipe(name=NAME, seed=best.seed, stages=[*stages, learns])
    folders = [bundle.adapter_dir(ref) for ref in start.adapters]
    folder = bundle.base_folder or from_hub(bundle.base_source, str(bundle.base_revision))
    name = read_config(folders[-1])["base_model_name_or_path"]
    return Job(
        title=f"{ensemble.name}/{NAME}",
        member=student,
        number=len(stages),
        ensemble=own,
        labels=ensemble.labels or [],
        data=recipe.data,
        precision=recipe.precision,
        base=Base(folder, recipe.base.kind, name, recipe.base.by_heads),
        bundle=bundle.path,
        before=folders,
        checkpoints=scratch / "checkpoints",
        target=scratch / "adapter",
    )


@dataclass(frozen=True)
class _Validation:
    """The stored validation rows, and the figures of answers to them. Each has a temperature of its own."""

    ensemble: Ensemble
    rows: ValidationRows
    outputs: NDArray[np.float64]
    """[M, N, C]"""

    @classmethod
    def read(cls, bundle: Bundle, ensemble: Ensemble) -> "_Validation":
        stored = bundle.validation_scores(ensemble.name)
        rows = stored.rows()
        found = (
            [stored.outputs(each, rows.header.rows) for each in ensemble.members] if rows else []
        )
        outputs = [each for each in found if each is not None]
        if rows is None or len(outputs) < len(ensemble.members):
            raise RecipeError(
                f"{bundle.path} lacks what the members of {ensemble.id} answer to the validation rows; train it again"
            )
        return cls(ensemble, rows, np.stack(outputs))

    def alone(self, member: Member) -> Mapping[str, float]:
        """Return a member's figures."""
        place = self.ensemble.members.index(member)
        update = {"members": [member], "fusion": FusionSpec(method="average")}
        lone = self.ensemble.model_copy(update=update)
        return self._fitted(lone, self.outputs[place : place + 1], "average")

    def fused(self) -> Mapping[str, float]:
        """Return the figures of the ensemble as it teaches, cross-fitted."""
        return self._fitted(self.ensemble, self.outputs, _teaches_by(self.ensemble))

    def figures(self, answers: Answers) -> Mapping[str, float]:
        """Return the figures of answers [N]."""
        whole = np.ones((1, len(self.rows.truth)))
        metrics = answer_metrics(answers, self.rows.truth)
        return {name: float(metrics[name](whole)[0]) for name in FIGURES}

    def _fitted(
        self, ensemble: Ensemble, outputs: NDArray[np.float64], method: Method
    ) -> Mapping[str, float]:
        options = self.rows.header.options.model_copy(
            update={"method": method, "candidates": [method]}
        )
        fitted = fit_fusion(ensemble, options, outputs, self.rows.truth, self.rows.folds)
        return self.figures(fitted.validation[method])

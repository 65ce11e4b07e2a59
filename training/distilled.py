"""Distils a finished ensemble into one adapter, which answers at one pass (`choir distil`)."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset, concatenate_datasets

from serve.adapter.folder import read_config
from serve.bundle import Bundle
from serve.manifest import Ensemble, Member
from training.data.loading import load_rows
from training.data.splits import Splits
from training.data.variations import variations
from training.distilled_figures import Figures, best_of, figures_of, teaches_by
from training.evaluation.evaluation import Evaluation, Labelled, labelled
from training.execution.jobs import Job
from training.execution.run import WORK, recorded_data, recorded_recipe
from training.leaderboard.criteria import LOWER_IS_BETTER, judged_by
from training.lone_rung import write_lone_rung
from training.manifest import whole_ensemble
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
    """The member with the best figure."""
    method: str
    """The ensemble's fusion."""
    metrics: tuple[str, str]
    """The metric that they are compared by, and a second one."""
    scores: Mapping[str, Figures]
    """`best`, `ensemble` and `distilled`, each with figures by name."""
    rows: int
    """The number of the validation rows."""
    passes: int
    """The passes of the ensemble for one answer."""
    manifest: Path
    """The file that a swap serves."""

    @property
    def kept(self) -> float | None:
        """The share of the ensemble's gain over the best member that the student keeps, in the metric that they are
        compared by; None if the ensemble has no gain."""
        metric = self.metrics[0]
        sign = 1 if metric in LOWER_IS_BETTER else -1
        best, fused, own = (
            sign * self.scores[name][metric] for name in ("best", "ensemble", "distilled")
        )
        return (best - own) / (best - fused) if fused < best else None


def distil(
    bundle_path: Path, name: str, unlabelled: Path | None, options: DistilOptions, watch: Watch
) -> Distilled:
    """Train one adapter on what the ensemble `name` answers to all training rows, to variations of them and to the
    texts in `unlabelled`, and on the rows' right answers. Write it into the bundle as the rung `distilled`.

    In generation the student learns what the ensemble writes, with its probabilities of each token (Kim and Rush 2016).

    The student goes on from the member that is best on the validation rows, and has its rank. Raises RecipeError if the
    bundle lacks its recipe or the recipe's rows; and BundleError."""
    bundle = Bundle.open(bundle_path)
    ensemble = whole_ensemble(bundle, name)
    recipe, own, splits = _trained_here(bundle, ensemble)
    metrics = judged_by(ensemble.task)
    validation = labelled(splits.validation, "validation", recipe, own)
    figures = figures_of(bundle, ensemble, validation, own.max_new_tokens, watch)
    alone = {each.name: figures.alone(each) for each in ensemble.members}
    able = [each for each in own.members if each.name in alone and _can_go_on(each)]
    best = next((each for each in able if each.name == _best_able(alone, able, metrics[0])), None)
    if best is None:
        raise RecipeError(
            f"{ensemble.id}: none of its members can be trained further: the MLP that made their virtual tokens was "
            "not kept"
        )
    start = next(member for member in ensemble.members if member.name == best.name)
    rows = _rows_to_learn(recipe, own, splits.train, unlabelled, options)
    if ensemble.task == "generation":
        rows = answered(bundle, ensemble, recipe, own, rows, watch)
    with tempfile.TemporaryDirectory(prefix="distilled-", dir=bundle.path / WORK) as scratch:
        job = _job(bundle, ensemble, recipe, own, best, start, options, Path(scratch))
        job.train(rows, watch)
        watch.end(job.title)
        ref = bundle.add_adapter(f"{name[:53]}-{NAME}", job.target)
    student = Member(name=NAME, adapters=[*start.adapters[:-1], ref])
    note = {"from": best.name, "epochs": options.epochs, "variations": options.variations}
    rung = write_lone_rung(bundle, ensemble, student, "distilled", validation, note, watch)
    leader = best_of(alone, metrics[0])
    return Distilled(
        best=leader,
        method=teaches_by(ensemble),
        metrics=metrics,
        passes=len(ensemble.members),
        scores={
            "best": alone[leader],
            "ensemble": figures.fused(),
            "distilled": figures.student(rung),
        },
        rows=figures.rows,
        manifest=rung.file,
    )


def _best_able(
    alone: Mapping[str, Figures], able: Sequence[MemberRecipe], metric: str
) -> str | None:
    """Return the name of the best member among those that can be trained further; None if there is none."""
    return best_of({each.name: alone[each.name] for each in able}, metric) if able else None


def _trained_here(bundle: Bundle, ensemble: Ensemble) -> tuple[Recipe, EnsembleRecipe, Splits]:
    """Return the recipe that made the bundle, its part on the ensemble, and the same rows as then."""
    if len(ensemble.members) == 1:
        raise RecipeError(
            f"{ensemble.id} has one member, {ensemble.members[0].name!r}, which answers at one pass already"
        )
    recipe = recorded_recipe(bundle.path)
    own = recipe.find(ensemble.name) if recipe else None
    if recipe is None or own is None:
        raise RecipeError(
            f"{bundle.path} does not say which rows {ensemble.id} was trained on; distil needs a bundle that "
            "`choir train` made"
        )
    if recipe.data.images and recipe.base.kind == "causal":
        raise RecipeError(
            f"{ensemble.id} writes about images, and distil learns from texts alone; merge its members instead"
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


def _rows_to_learn(
    recipe: Recipe,
    own: EnsembleRecipe,
    train: Dataset,
    unlabelled: Path | None,
    options: DistilOptions,
) -> Dataset:
    """Return the training rows, and rows without an answer: variations of their texts, and the texts of a file."""
    text, pair, columns = recipe.data.input, recipe.data.text_pair, recipe.data.inputs
    parts = [train.select_columns([*columns, own.answer])]
    if options.variations and not pair and not recipe.data.images:
        made = variations(list(train[text]), options.variations, recipe.seed)
        parts.append(Dataset.from_dict({text: made}))
    if unlabelled is not None:
        parts.append(load_rows([unlabelled], columns, images=recipe.data.images).rows)
    return concatenate_datasets(parts)


def answered(
    bundle: Bundle,
    ensemble: Ensemble,
    recipe: Recipe,
    own: EnsembleRecipe,
    rows: Dataset,
    watch: Watch,
) -> Dataset:
    """Return the distinct texts of the rows with what the ensemble writes to each, where it writes anything."""
    texts = list(dict.fromkeys(rows[recipe.data.text]))
    evaluation = Evaluation(bundle, ensemble, watch, max_new_tokens=own.max_new_tokens)
    answers = evaluation.served(Labelled(texts, [""] * len(texts), "training"))
    pairs = [(text, answer) for text, answer in zip(texts, answers, strict=True) if answer]
    if not pairs:
        raise RecipeError(
            f"{ensemble.id} writes nothing to its training texts, so it teaches nothing"
        )
    return Dataset.from_dict(
        {
            recipe.data.text: [text for text, _ in pairs],
            own.answer: [answer for _, answer in pairs],
        }
    )


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

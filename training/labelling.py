"""Labels for rows that have none: from a teacher, rules, annotators or a person's review."""

from collections.abc import Sequence
from pathlib import Path

from datasets import Dataset, concatenate_datasets

from serve.bundle import Bundle
from serve.fusion.fuse import Fusion
from serve.fusion.fused import Fused
from training.data.annotation.annotators import merged_labels
from training.data.annotation.labelled import Guess, sure_rows
from training.data.annotation.review import read_decisions
from training.data.annotation.rules import rule_function, weak_labels
from training.data.steps import ORIGIN, WEIGHT, Outcome, leave
from training.offline.members import OfflineMembers
from training.recipe import RecipeError
from training.recipe.annotate import AnnotateRecipe, Teacher
from training.recipe.values import spelled


def guessed_rows(pool: Dataset, annotate: AnnotateRecipe, text: str, seed: int) -> Outcome:
    """Label the rows of `pool`: keep those whose label has enough confidence, and queue the others for review."""
    texts = list(pool[text])
    if annotate.teacher is not None:
        guesses = teacher_guesses(annotate.teacher, texts)
    elif annotate.rules is not None:
        guesses = weak_labels(texts, [rule_function(rule) for rule in annotate.rules])
    else:
        said = [list(pool[name]) for name in annotate.annotators or []]
        guesses = merged_labels(texts, said, seed)
    return sure_rows(pool, guesses, text, annotate.label, annotate.confidence)


def teacher_guesses(teacher: Teacher, texts: Sequence[str]) -> list[Guess]:
    """Return the teacher's label of each text, with its probability as the confidence.

    Raises BundleError, and RecipeError if the ensemble is not for classification or lacks the member.
    """
    bundle = Bundle.open(teacher.bundle)
    ensemble = bundle.ensemble(teacher.ensemble)
    if ensemble.task != "classification":
        raise RecipeError(
            f"data.annotate.teacher: {ensemble.id} does {ensemble.task}; labels come from classification"
        )
    names = [member.name for member in ensemble.members]
    if teacher.member is not None and teacher.member not in names:
        raise RecipeError(
            f"data.annotate.teacher: {ensemble.id} has no member {teacher.member!r}, only {', '.join(names)}"
        )
    offline = OfflineMembers(bundle, ensemble)
    members = offline.outputs(texts)
    fusion = Fusion.from_manifest(ensemble, bundle.fusion_path(ensemble))
    if teacher.member is None:
        vectors = offline.gate_vectors(fusion, texts)
        answers, source = fusion(members, vectors=vectors), ensemble.id
    else:
        answers = fusion.alone(members[names.index(teacher.member)])
        source = f"{ensemble.id}/{teacher.member}"
    assert isinstance(answers, Fused), "the task is classification"
    probabilities = answers.probabilities
    labels = ensemble.labels or []
    return [Guess(labels[int(row.argmax())], float(row.max()), source) for row in probabilities]


def teacher_identity(annotate: AnnotateRecipe) -> str:
    """Return the teacher's manifest as JSON, which decides its labels; empty without a teacher."""
    if annotate.teacher is None:
        return ""
    manifest = Bundle.open(annotate.teacher.bundle).ensemble(annotate.teacher.ensemble)
    return manifest.model_dump_json()


def reviewed_rows(rows: Dataset, reviewed: Path, text: str, label: str) -> Outcome:
    """Apply a person's decisions: change labels, remove rejected rows, and add reviewed texts that no row has yet."""
    decisions = {
        decision.text: decision.label and spelled(decision.label)
        for decision in read_decisions(reviewed)
    }
    texts, labels = list(rows[text]), list(rows[label])
    decided = [decisions.get(one, given) for one, given in zip(texts, labels, strict=True)]
    rejected = {index: "rejected in review" for index, said in enumerate(decided) if said is None}
    relabelled = rows.remove_columns([label]).add_column(label, [said or "" for said in decided])
    outcome = leave(relabelled, rejected, "train", "review")
    known = set(texts)
    new = {one: said for one, said in decisions.items() if said is not None and one not in known}
    added = Dataset.from_dict(
        {
            text: list(new),
            label: list(new.values()),
            ORIGIN: [f"{reviewed.name}:{number}" for number in range(1, len(new) + 1)],
            WEIGHT: ["1"] * len(new),
        }
    )
    changed = sum(one != two for one, two in zip(labels, decided, strict=True)) - len(rejected)
    note = f"{changed} relabelled, {len(rejected)} rejected, {len(new)} added"
    return Outcome(with_rows(outcome.rows, added), outcome.left, note=note)


def with_rows(rows: Dataset, more: Dataset) -> Dataset:
    """Append `more` to `rows`. Columns that `more` lacks are filled with empty texts."""
    if not len(more):
        return rows
    for name in rows.column_names:
        if name not in more.column_names:
            more = more.add_column(name, [""] * len(more))
    return concatenate_datasets([rows, more.select_columns(rows.column_names)])

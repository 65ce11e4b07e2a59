"""Evaluates an ensemble: its members and all fusion methods on rows with known answers."""

import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray

from serve.bundle import Bundle
from serve.fusion.answers import choose_answer
from serve.fusion.asking.asking import asked_offline
from serve.fusion.asking.choice import asking_for
from serve.fusion.fitting.fit import Targets
from serve.fusion.fuse import Fusion
from serve.fusion.fused import Answers, Fused, FusedSets, FusedValues
from serve.fusion.ranking.candidates import Candidates
from serve.labels import LabelError
from serve.manifest import (
    METHODS,
    TEXT_METHODS,
    Ensemble,
    Extract,
    FusionSpec,
    Method,
)
from serve.terminal.screen import Screen
from training.data.loading import load_rows
from training.data.targets import targets
from training.evaluation.abstaining import abstaining_metrics, given_answers
from training.evaluation.baselines import tfidf_svc
from training.evaluation.metrics.classification import classification_metrics
from training.evaluation.metrics.multilabel import multilabel_metrics
from training.evaluation.metrics.regression import regression_metrics
from training.evaluation.metrics.resampling import Metric
from training.evaluation.metrics.text import text_metrics, text_signatures
from training.evaluation.rows.columns import IMAGE, TEXT, InputColumns, has_towers
from training.evaluation.scores import EvaluationReport, System, compare
from training.evaluation.tables import MAIN, show
from training.evaluation.texts.ranking import ranked_passes
from training.evaluation.texts.writing import Writing
from training.execution.held_rows import kept
from training.execution.progress_table import ProgressTable
from training.execution.run import WORK, recorded_data, recorded_recipe
from training.offline.members import OfflineMembers
from training.preparation import load_splits
from training.progress import Advance, Watch, counted, quiet_libraries
from training.recipe import EnsembleRecipe, Recipe, RecipeError

MAX_NEW_TOKENS = 64
ANSWER_COLUMN = {
    "classification": "label",
    "multilabel": "labels",
    "regression": "value",
    "generation": "target",
}
"""The column of the right answers, if no recipe names one."""


@dataclass(frozen=True)
class Labelled:
    """Texts and their right answers."""

    texts: Sequence[str]
    answers: Sequence[str]
    """The cells of the answers' column; in generation, the first right reply to each text."""
    name: str
    """The name of the rows in the report: `test`, `validation` or a file's name."""
    references: Sequence[Sequence[str]] = ()
    """Generation: all right replies to each text."""
    pairs: Sequence[str] | None = None
    """The second texts if rows are pairs."""

    def targets(self, ensemble: Ensemble) -> Targets:
        """Return the right answers as numbers. Raises RecipeError if the ensemble lacks a label, or a value is not a
        number."""
        return targets(ensemble.task, ensemble.labels or [], self.answers, self.name)

    @classmethod
    def replies(cls, texts: Sequence[str], answers: Sequence[str], name: str) -> "Labelled":
        """Make rows of generation. Equal texts become one row with several right replies."""
        rights: dict[str, list[str]] = {}
        for text, answer in zip(texts, answers, strict=True):
            rights.setdefault(text, []).append(answer)
        return cls(list(rights), [right[0] for right in rights.values()], name, [*rights.values()])

    def first(self, count: int) -> "Labelled":
        """Return the first `count` rows."""
        return replace(
            self,
            texts=self.texts[:count],
            answers=self.answers[:count],
            references=self.references[:count],
        )


class Evaluation:
    """An ensemble of a bundle with its members loaded."""

    def __init__(
        self,
        bundle: Bundle,
        ensemble: Ensemble,
        watch: Watch,
        *,
        max_new_tokens: int = MAX_NEW_TOKENS,
        extract: Extract | None = None,
    ) -> None:
        """`extract` is the recipe's: what a vote compares, whichever method the manifest has."""
        self.ensemble = ensemble
        self._extract = extract
        self._watch = watch
        self._bundle = bundle
        self._writing = Writing(bundle, ensemble, lambda: self._members, max_new_tokens, watch)

    @cached_property
    def _members(self) -> OfflineMembers:
        """The loaded members. Where all answers are kept, none is loaded."""
        return OfflineMembers(self._bundle, self.ensemble)

    def outputs(self, data: Labelled) -> NDArray[np.float64]:
        """Return the members' label probabilities [M, N, C], or values [M, N].

        Raises RecipeError if members read pairs and the rows are single texts, or the other way round."""
        try:
            with self._progress(data) as advance:
                return self._members.outputs(data.texts, data.pairs, advance)
        except LabelError as error:
            raise RecipeError(f"{data.name}: {error}") from None

    def base_vectors(self, data: Labelled) -> NDArray[np.float64]:
        """Return the vectors of the base without adapters, which a gate reads [N, H]."""
        with counted(
            self._watch, f"{self.ensemble.name}: {data.name}, base", len(data.texts)
        ) as advance:
            return self._members.base_vectors(data.texts, data.pairs, advance)

    def answers(self, data: Labelled) -> list[list[str]]:
        """Return the members' greedy answers [M][N]."""
        return self._writing.answers(data.texts, data.name)

    def candidates(self, data: Labelled) -> list[Candidates]:
        """Return what a ranker reads of the members' answers to each row."""
        return self._writing.candidates(data.texts, data.name)

    def fused(self, data: Labelled) -> dict[str, list[str]]:
        """Return the greedy answers of each method that fuses at every token, by the method's name."""
        return self._writing.fused(data.texts, data.name)

    def served(self, data: Labelled) -> list[str]:
        """Return what an ensemble of generation writes by the manifest's method [N]."""
        return self._writing.served(data.texts, data.name)

    def report(
        self,
        ensemble: Ensemble,
        data: Labelled,
        baselines: Mapping[str, NDArray[np.int64]] | None = None,
    ) -> EvaluationReport:
        """Evaluate the members, all fusion methods and `baselines`. The manifest `ensemble` has the same members as the
        loaded one, and says how they are fused."""
        if ensemble.task == "generation":
            written = self.fused(data) | self._writing.ranked(ensemble, data.texts, data.name)
            return generation_report(ensemble, data, self.answers(data), written, self._extract)
        truth = data.targets(ensemble)
        outputs = self.outputs(data)
        fusion = Fusion.from_manifest(ensemble, self._bundle.fusion_path(ensemble))
        vectors = None if fusion.gate is None else self.base_vectors(data)
        fused: dict[str, Answers] = {}
        passes: dict[str, float] = {}
        for method in fusion.methods:
            # The manifest's own method is asked as it is served: with early exit, if it has that.
            asked_for = None if method == ensemble.fusion.method else method
            asking = asking_for(fusion, len(truth), asked_for)
            fused[method] = asked_offline(asking, outputs, vectors)
            passes[method] = float(asking.passes.mean())
        return label_report(ensemble, data, outputs, truth, fused, baselines, passes)

    def _progress(self, data: Labelled) -> AbstractContextManager[Advance]:
        total = len(data.texts) * len(self.ensemble.members)
        return counted(self._watch, f"{self.ensemble.name}: {data.name}", total)


def label_report(
    ensemble: Ensemble,
    data: Labelled,
    outputs: NDArray[np.float64],
    truth: Targets,
    fused: Mapping[str, Answers],
    baselines: Mapping[str, NDArray[np.int64]] | None = None,
    passes: Mapping[str, float] | None = None,
) -> EvaluationReport:
    """Report on labels or values, from the members' outputs [M, N, C] or [M, N], the right answers, the answers of each
    fusion method, and the label indices [N] of each baseline. `passes` are those of methods that do not ask all
    members. If the manifest abstains, the served row has coverage and risk."""
    fusion = Fusion(ensemble)
    systems = [
        System(member.name, "member", answer_metrics(fusion.alone(own), truth))
        for member, own in zip(ensemble.members, outputs, strict=True)
    ]
    for method, answers in fused.items():
        metrics = answer_metrics(answers, truth, shares=method == "vote")
        served = method == ensemble.fusion.method
        if served and ensemble.fusion.abstain is not None:
            given = given_answers(ensemble, answers, ensemble.fusion.abstain)
            metrics |= abstaining_metrics(answers, truth, given)
        asked = (passes or {}).get(method)
        systems.append(System(method, "fusion", metrics, served, asked))
    for name, winners in (baselines or {}).items():
        metrics = classification_metrics(None, winners, truth.astype(np.int64))
        systems.append(System(name, "baseline", metrics))
    return compare(ensemble.id, data.name, len(truth), systems, MAIN[ensemble.task])


def answer_metrics(answers: Answers, truth: Targets, *, shares: bool = False) -> dict[str, Metric]:
    """Return the metrics of answers.

    `shares` says that the probabilities are shares of votes; they are often 0, so the log loss is left out."""
    match answers:
        case Fused():
            probabilities = None if shares else answers.probabilities
            return classification_metrics(probabilities, answers.winners, truth.astype(np.int64))
        case FusedSets():
            probabilities = None if shares else answers.probabilities
            return multilabel_metrics(probabilities, answers.chosen, truth.astype(np.bool_))
        case FusedValues():
            return regression_metrics(answers.values, truth.astype(np.float64))


def generation_report(
    ensemble: Ensemble,
    data: Labelled,
    answers: Sequence[Sequence[str]],
    fused: Mapping[str, Sequence[str]],
    extract: Extract | None = None,
) -> EvaluationReport:
    """Report on the members' answers [M][N], those chosen among them by their texts, and those `fused` by each other
    method. `extract` says what of a text is compared, unless the manifest does."""
    systems = [
        System(member.name, "member", text_metrics(texts, data.references))
        for member, texts in zip(ensemble.members, answers, strict=True)
    ]
    for method, texts in method_texts(ensemble, answers, fused, extract).items():
        metrics = text_metrics(texts, data.references)
        passes = ranked_passes(list(zip(*answers, strict=True))) if method == "stack" else None
        systems.append(System(method, "fusion", metrics, method == ensemble.fusion.method, passes))
    signatures = text_signatures(data.references)
    return compare(ensemble.id, data.name, len(data.texts), systems, MAIN["generation"], signatures)


def method_texts(
    ensemble: Ensemble,
    answers: Sequence[Sequence[str]],
    fused: Mapping[str, Sequence[str]],
    extract: Extract | None = None,
) -> dict[Method, Sequence[str]]:
    """Return the answers of each fusion method of generation: those that choose among the members' answers [M][N] by
    their texts, and those in `fused`: at every token, or by a ranker. `extract` says what of a text is compared, unless
    the manifest does."""
    found: dict[str, Sequence[str]] = dict(fused)
    for each in TEXT_METHODS:
        spec = FusionSpec(method=each, extract=ensemble.fusion.extract or extract)
        choosing = ensemble.model_copy(update={"fusion": spec})
        rows = zip(*answers, strict=True)
        found[each] = [texts[choose_answer(choosing, texts, each).winner] for texts in rows]
    return {method: found[method] for method in METHODS["generation"] if method in found}


def answer_scores(
    ensemble: Ensemble, data: Labelled, answers: Sequence[Sequence[str]]
) -> dict[str, float]:
    """Return the main figure of each member's answers [M][N], by the member's name."""
    once = np.ones((1, len(data.texts)))
    main = MAIN["generation"]
    return {
        member.name: round(float(text_metrics(texts, data.references)[main](once)[0]), 6)
        for member, texts in zip(ensemble.members, answers, strict=True)
    }


def baseline_answers(
    recipe: EnsembleRecipe, ensemble: Ensemble, known: Labelled, data: Labelled
) -> dict[str, NDArray[np.int64]]:
    """Fit the recipe's baselines on `known`, and return their label indices [N] for `data` by name."""
    if not recipe.baselines:
        return {}
    truth = known.targets(ensemble).astype(np.int64)
    return {
        name: tfidf_svc(known.texts, truth, data.texts, known.pairs, data.pairs)
        for name in recipe.baselines
    }


def evaluate_bundle(
    bundle_path: Path, ensemble: str, data: Path | None, json_path: Path | None
) -> None:
    """Evaluate an ensemble (`choir evaluate`): print the table, and write it to `json_path` if given.

    Without `data`, the rows are the recipe's test rows, or its validation rows if it has no test rows. Raises
    RecipeError and BundleError.
    """
    bundle = Bundle.open(bundle_path)
    manifest = bundle.ensemble(ensemble)
    recipe = recorded_recipe(bundle.path)
    own = recipe.find(ensemble) if recipe else None
    quiet_libraries()
    rows, known = rows_to_judge(bundle, manifest, recipe, own, data)
    limit = own.max_new_tokens if own else MAX_NEW_TOKENS
    baselines = baseline_answers(own, manifest, known, rows) if own and known else {}
    with ProgressTable() as progress_table:
        evaluation = Evaluation(
            bundle,
            manifest,
            progress_table,
            max_new_tokens=limit,
            extract=own.extract if own else None,
        )
        report = evaluation.report(manifest, rows, baselines)
    show(report, Screen())
    if json_path is not None:
        json_path.write_text(json.dumps(report.model_dump(), indent=2) + "\n", encoding="utf-8")


def labelled(rows: Dataset, name: str, recipe: Recipe, ensemble: EnsembleRecipe) -> Labelled:
    """Return the rows as the ensemble reads them; in generation, at most as many texts as the recipe says."""
    columns = InputColumns.of_recipe(recipe.data)
    texts = columns.cells(rows)
    if ensemble.task == "generation":
        whole = Labelled.replies(texts, list(rows[ensemble.target]), name)
        return whole.first(ensemble.evaluation_rows)
    return Labelled(texts, list(rows[ensemble.answer]), name, pairs=columns.pairs(rows))


def rows_to_judge(
    bundle: Bundle,
    manifest: Ensemble,
    recipe: Recipe | None,
    own: EnsembleRecipe | None,
    data: Path | None,
) -> tuple[Labelled, Labelled | None]:
    """Return the rows to evaluate on, and the rows that baselines are fitted on, if any: those of the file `data`, or
    else the test rows of the `recipe` that made the bundle, or its validation rows if it has no test rows. The recipe's
    files are read only for baselines, or if the run did not keep its rows.

    `own` is the recipe of the ensemble. Raises RecipeError."""
    if data is not None:
        columns = (
            InputColumns.of_recipe(recipe.data)
            if recipe
            else InputColumns.of_file(bundle, manifest, data)
        )
        answer = own.answer if own else ANSWER_COLUMN[manifest.task]
        loaded = load_rows(
            [data],
            [*columns.all, answer],
            labels=[answer] if manifest.task == "classification" else [],
            sets=[answer] if manifest.task == "multilabel" else [],
            images=columns.images,
        )
        if loaded.note:
            Screen().say(f"{data.name}: {loaded.note}")
        texts, answers = columns.cells(loaded.rows), list(loaded.rows[answer])
        if manifest.task == "generation":
            judged = Labelled.replies(texts, answers, data.name)
        else:
            judged = Labelled(texts, answers, data.name, pairs=columns.pairs(loaded.rows))
        if own is None or not own.baselines:
            return judged, None
    if recipe is None or own is None:
        raise RecipeError(
            f"{bundle.path} does not say which rows {manifest.id} was tested on; give --data FILE with the columns "
            f"{IMAGE if has_towers(bundle) else TEXT} and {ANSWER_COLUMN[manifest.task]}"
        )
    held = kept(bundle.path / WORK, "validation")
    if data is None and held is not None and not own.baselines:
        # The rows that the run kept are those of its training, whatever has become of the files.
        test = kept(bundle.path / WORK, "test")
        if test is None:
            return labelled(held, "validation", recipe, own), None
        return labelled(test, "test", recipe, own), None
    splits = load_splits(recipe, bundle.path / WORK)
    if splits.digest() != recorded_data(bundle.path):
        Screen(stderr=True).say(
            f"Warning: the recipe's rows are not split as they were when {bundle.path} was trained: the data files "
            "have changed, or this version of Choir splits rows differently. Members may have been trained on some of "
            "these rows, and the figures may be too good; give --data FILE with rows that are new to them."
        )
    known = labelled(splits.known, "training", recipe, own)
    if data is not None:
        return judged, known
    if splits.test is None:
        return labelled(splits.validation, "validation", recipe, own), None
    return labelled(splits.test, "test", recipe, own), known

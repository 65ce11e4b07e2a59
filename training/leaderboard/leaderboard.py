"""Makes an ensemble's leaderboard (`choir leaderboard`), and writes it and the manifests of its rungs."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from serve.bundle import Bundle
from serve.files import write_atomically
from serve.fusion.fitting.note import FIGURES, noted
from serve.fusion.fitting.stored_scores import Question, ValidationRows
from serve.fusion.parameters import parameters_file
from serve.manifest import Ensemble, Member
from training.evaluation.abstaining import USUAL
from training.evaluation.evaluation import MAX_NEW_TOKENS, Evaluation, Labelled, rows_to_judge
from training.execution.run import recorded_recipe
from training.leaderboard.board import Leaderboard, board_file, read_board
from training.leaderboard.contender import FittingRows
from training.leaderboard.criteria import judged_by
from training.leaderboard.judgement import Counts, Entry, judge
from training.leaderboard.labels import contenders, label_entries
from training.leaderboard.outputs import MemberOutputs
from training.leaderboard.rungs import SCORE, read_rungs, rung_file, write_rung
from training.leaderboard.texts import Written
from training.leaderboard.timing import Input, Timer
from training.leaderboard.validation import VALIDATION, validation_texts
from training.manifest import whole_ensemble
from training.progress import Watch
from training.recipe import RecipeError

FUSION = "fusion"
"""The bundle's folder for fitted parameters."""
LEAST_ROWS = 10
"""Validation rows, lest a fold of them is empty."""
INPUTS = 64
"""How many of the judged rows a timer gets as inputs."""


class Judging:
    """One ensemble of a bundle, with the recipe that made it."""

    def __init__(self, bundle: Bundle, ensemble: str, watch: Watch) -> None:
        """Raises BundleError if there is no such ensemble, or a rung of it is unsound."""
        self._bundle = bundle
        self._watch = watch
        self._ensemble = whole_ensemble(bundle, ensemble)
        self._made = read_rungs(bundle, ensemble)
        self._recipe = recorded_recipe(bundle.path)
        self._own = self._recipe.find(ensemble) if self._recipe else None

    def leaderboard(self, data: Path | None = None, timer: Timer | None = None) -> Leaderboard:
        """Judge every rung, and write the rungs' manifests into the bundle.

        The rows are those of the file `data`, or else the recipe's test rows, or its validation rows if it has none.
        The leaderboard is written too, for the report, unless it is of a file's rows beside a recipe's own.
        Without a `timer`, no request is measured, and rungs that are as they were keep their times. Raises RecipeError,
        BundleError and FusionError."""
        rows, _ = rows_to_judge(self._bundle, self._ensemble, self._recipe, self._own, data)
        judged = self._texts if self._ensemble.task == "generation" else self._labels
        entries, counts, by = judged(rows)
        known = self._known_times(entries)
        manifests = {each.name: self._write(each, counts.validation) for each in entries}
        times = known if timer is None else self._times(timer, manifests, rows)
        board = judge(self._ensemble.name, entries, counts, by, times)
        if data is None or self._own is None:
            content = board.model_dump_json(indent=2) + "\n"
            write_atomically(board_file(self._bundle.path, self._ensemble.name), content)
        return board

    def _labels(self, rows: Labelled) -> tuple[list[Entry], Counts, tuple[str, str]]:
        stored = self._bundle.validation_scores(self._ensemble.name).rows()
        if stored is None or stored.header.question != Question.of(self._ensemble):
            raise RecipeError(
                f"{self._bundle.path} keeps no validation rows of {self._ensemble.id}, on which rungs are fitted and "
                "chosen; make the bundle with `choir train`"
            )
        if len(stored.truth) < LEAST_ROWS:
            raise RecipeError(
                f"{self._ensemble.id} has {len(stored.truth)} validation rows, and a recommendation needs at least "
                f"{LEAST_ROWS}: hold out more (data.validation_fraction)"
            )
        options = stored.header.options
        contending = contenders(self._ensemble, self._made, options)
        members = judged_members(self._bundle, self._ensemble.name)
        known = self._validation(stored, members)
        gated = "gate" in options.methods(self._ensemble.task)
        if gated:
            scores = self._bundle.validation_scores(self._ensemble.name)
            known.vectors = scores.vectors(stored.header.rows)
        fitting = FittingRows(known, stored.truth, stored.folds)
        judged, count = None, len(stored.truth)
        if rows.name != VALIDATION:
            outputs = MemberOutputs().answered(
                self._bundle, self._ensemble, members, rows, self._watch
            )
            if gated:
                evaluation = Evaluation(self._bundle, self._ensemble, self._watch)
                outputs.vectors = evaluation.base_vectors(rows)
            judged, count = (outputs, rows.targets(self._ensemble)), len(rows.texts)
        title = f"{self._ensemble.name}: rungs"
        entries = label_entries(
            contending, fitting, judged, options.abstain or USUAL, self._watch, title
        )
        by = judged_by(self._ensemble.task, options.criterion)
        return entries, Counts(len(stored.truth), count), by

    def _texts(self, rows: Labelled) -> tuple[list[Entry], Counts, tuple[str, str]]:
        validation = validation_texts(self._bundle, self._ensemble)
        judged = None if rows.name == VALIDATION else rows
        limit = self._own.max_new_tokens if self._own else MAX_NEW_TOKENS
        extract = self._own.extract if self._own else None
        written = Written(self._bundle, self._ensemble, limit, self._watch, extract)
        entries = written.entries(self._made, validation, judged)
        counts = Counts(len(validation.texts), len(rows.texts))
        return entries, counts, judged_by("generation")

    def _validation(self, stored: ValidationRows, members: Sequence[Member]) -> MemberOutputs:
        """Return the members' outputs for the validation rows: the stored ones, and those of members that were not
        asked yet, which are stored then. Raises RecipeError if their texts are not known any more."""
        scores = self._bundle.validation_scores(self._ensemble.name)
        found = MemberOutputs()
        new = []
        for member in members:
            outputs = scores.outputs(member, stored.header.rows)
            if outputs is None:
                new.append(member)
            else:
                found.add(member, outputs)
        if new:
            rows = validation_texts(self._bundle, self._ensemble)
            found.answered(self._bundle, self._ensemble, new, rows, self._watch)
            for member in new:
                scores.write_outputs(member, stored.header.rows, found.of([member])[0])
        return found

    def _known_times(self, entries: Sequence[Entry]) -> dict[str, float]:
        """Return the times that the last leaderboard has of rungs whose members and method are the same now."""
        try:
            last = read_board(self._bundle.path, self._ensemble.name)
        except ValueError:  # damaged, and soon written anew
            last = None
        times = {} if last is None else {each.name: each.milliseconds for each in last.rungs}
        found = {}
        for entry in entries:
            file = rung_file(self._bundle, self._ensemble.name, entry.name)
            time = times.get(entry.name)
            if time is None or not file.is_file():
                continue
            before = self._bundle.read_rung(file)
            same = before.digests == entry.manifest.digests
            if same and before.fusion.method == entry.manifest.fusion.method:
                found[entry.name] = time
        return found

    def _times(
        self, timer: Timer, manifests: Mapping[str, Ensemble], rows: Labelled
    ) -> dict[str, float]:
        inputs = [
            Input(text, rows.pairs[place] if rows.pairs else None)
            for place, text in enumerate(rows.texts[:INPUTS])
        ]
        return timer.milliseconds(self._bundle, manifests, inputs)

    def _write(self, entry: Entry, rows: int) -> Ensemble:
        """Write the manifest that serves a rung, with its fitted parameters, and return it. What the maker of a rung
        has noted, and its golden inputs, stay."""
        manifest = entry.manifest
        if entry.parameters is not None:
            file = parameters_file(entry.parameters.parameters.model)
            place = f"{FUSION}/{manifest.name}/{entry.name}/{file}"
            entry.parameters.write(self._bundle.path / place)
            fusion = manifest.fusion.model_copy(update={"parameters": place})
            manifest = manifest.model_copy(update={"fusion": fusion})
        made = next((rung.manifest for rung in self._made if rung.name == entry.name), None)
        scores = {} if made is None else made.scores
        golden = [] if made is None else made.golden
        whole = np.ones((1, rows))
        figures = {name: float(metric(whole)[0]) for name, metric in entry.validation.items()}
        manifest = manifest.model_copy(
            update={
                "golden": golden,
                "scores": {**scores, **manifest.scores, FIGURES: figures},
            }
        )
        if manifest.task != "generation":
            manifest = noted(manifest, "fitted", rows)
        note = scores.get(SCORE)
        write_rung(self._bundle, entry.name, entry.kind, manifest, note)
        return manifest


def judged_members(bundle: Bundle, ensemble: str) -> list[Member]:
    """Return the members of an ensemble, and those of its rungs that have an adapter of their own. Raises
    BundleError."""
    made = read_rungs(bundle, ensemble)
    return [
        *whole_ensemble(bundle, ensemble).members,
        *(member for rung in made for member in rung.manifest.members),
    ]

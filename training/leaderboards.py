"""The last step of a training run: a leaderboard for each ensemble, with the merges that its recipe asks for."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import numpy as np

from serve.adapter import DEFAULT_RANK_LIMIT
from serve.bundle import Bundle, BundleError
from serve.fusion.asking.choice import served_answers
from serve.fusion.fuse import Fusion
from serve.manifest import Ensemble, Golden
from training.evaluation.golden_inputs import golden_answers
from training.execution.run import Run
from training.leaderboard.board import Leaderboard, read_board
from training.leaderboard.leaderboard import LEAST_ROWS, Judging
from training.leaderboard.rungs import rung_file
from training.leaderboard.timing import Timer
from training.leaderboard.validation import validation_texts
from training.merging.lora import MERGES
from training.merging.lora import Recipe as Merge
from training.merging.merge import merge_ensemble
from training.merging.soup import SOUPS, make_soup
from training.recipe import EnsembleRecipe, Recipe, RecipeError

Timed = Callable[[Bundle, str], AbstractContextManager[Timer]]
"""Gives a timer for a bundle and an ensemble's name, and ends it."""


@dataclass(frozen=True)
class Boards:
    """Makes the leaderboards of a run."""

    asked: bool = True
    """Whether every ensemble gets one. Otherwise only those do whose recipe asks for a rung or for `method: auto`."""
    timed: Timed | None = None
    """None measures no requests."""
    problems: list[str] = field(default_factory=list)
    """Why requests were not measured, as sentences for the end of the run."""

    def made(self, recipe: Recipe, run: Run, bundle: Bundle) -> list[Leaderboard]:
        """Judge each ensemble of a finished run, once, and return the leaderboards. An ensemble of one member has none,
        unless it has other rungs. Raises RecipeError if members cannot be merged as the recipe asks."""
        boards = []
        for each in recipe.ensembles:
            step = f"leaderboard {each.name}"
            if run.result(step) is None and self._wanted(each, bundle):
                with run.models:
                    _merge(each, bundle, run)
                    self._judge(each, bundle, run)
                run.finish(step, True)
            board = read_board(bundle.path, each.name) if run.result(step) else None
            if board is not None:
                boards.append(board)
        return boards

    def _wanted(self, recipe: EnsembleRecipe, bundle: Bundle) -> bool:
        if len(recipe.members) == 1 and not bundle.rung_files(recipe.name):
            return False
        if recipe.rivals or recipe.merges or recipe.fusion.method == "auto":
            return True
        rows = bundle.validation_scores(recipe.name).rows()
        return self.asked and (rows is None or len(rows.truth) >= LEAST_ROWS)

    def _judge(self, recipe: EnsembleRecipe, bundle: Bundle, run: Run) -> None:
        with nullcontext() if self.timed is None else self.timed(bundle, recipe.name) as timer:
            board = Judging(bundle, recipe.name, run.watch).leaderboard(timer=timer)
            if timer is not None and timer.problem is not None:
                self.problems.append(f"{recipe.name}: {timer.problem}")
        if recipe.fusion.method == "auto":
            take(board, recipe, bundle)


OF_TRAINING = ("verdict", "search")
"""The keys of a manifest's `scores` that say what the training found, whichever rung is served."""
NEEDED = Boards(asked=False)
"""Only what the recipes need, without times."""


def _merge(recipe: EnsembleRecipe, bundle: Bundle, run: Run) -> None:
    try:
        for method in MERGES:
            if method in recipe.merges:
                merge_ensemble(bundle, recipe.name, Merge(method))
        for soup in SOUPS:
            if soup in recipe.merges:
                make_soup(bundle, recipe.name, soup, DEFAULT_RANK_LIMIT, run.watch)
    except BundleError as error:
        raise RecipeError(f"ensemble {recipe.name!r}, merges: {error}") from error


def take(board: Leaderboard, recipe: EnsembleRecipe, bundle: Bundle) -> None:
    """Write the recommended rung as the ensemble's next version, unless it serves as the first one does."""
    first = bundle.ensemble(board.ensemble)
    file = rung_file(bundle, board.ensemble, board.recommended)
    rung = Ensemble.model_validate_json(file.read_bytes())
    if _serves(rung) == _serves(first):
        return
    golden = _golden(rung, bundle)[: recipe.golden] if recipe.golden else []
    scores = {
        **{key: first.scores[key] for key in OF_TRAINING if key in first.scores},
        **rung.scores,
    }
    taken = rung.model_copy(
        update={"version": first.version + 1, "golden": golden, "scores": scores}
    )
    bundle.write_ensemble(taken)


def _serves(manifest: Ensemble) -> tuple[object, ...]:
    """Return what decides which members are asked, and how they are fused."""
    spec = manifest.fusion
    return manifest.digests, spec.method, spec.early_exit, spec.top_k


def _golden(rung: Ensemble, bundle: Bundle) -> list[Golden]:
    """Return the validation rows that a rung answers right; none for generation, whose answers are not kept."""
    stored = bundle.validation_scores(rung.name)
    rows = stored.rows()
    if rows is None:
        return []
    outputs = [stored.outputs(member, rows.header.rows) for member in rung.members]
    answered = np.stack([each for each in outputs if each is not None])
    fusion = Fusion.from_manifest(rung, bundle.fusion_path(rung))
    served = served_answers(fusion, answered, stored.vectors(rows.header.rows))
    texts = validation_texts(bundle, rung)
    return golden_answers(texts, rows.truth, served, rung.labels or [])

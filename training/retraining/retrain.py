"""Trains one member of a finished bundle anew, and stores what a swap to it needs. What is served stays as it is."""

import shlex
import shutil
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

from serve.bundle import Bundle
from serve.manifest import Ensemble, Member
from serve.terminal.screen import Screen
from training.data.steps import content_digest
from training.evaluation.evaluation import Evaluation
from training.evaluation.scores import EvaluationReport
from training.execution.jobs import LocalWorkers
from training.execution.progress_table import ProgressTable
from training.execution.run import Run, recorded_steps
from training.members import Members
from training.progress import quiet_libraries
from training.recipe import RecipeError
from training.retraining.figures import Figure, label_figures, refitted, text_figures
from training.retraining.golden import wrong_golden
from training.retraining.request import Request, understood
from training.retraining.rows import Rows, rows_of
from training.stages.base import finished_base


@dataclass(frozen=True)
class Retrained:
    """A member that was trained anew, in the bundle but not in the ensemble."""

    ensemble: str
    member: str
    folders: Sequence[Path]
    """Its adapters, each in a folder that is named by its digest."""
    figures: Sequence[Figure]
    wrong_golden: Sequence[str]
    """Golden inputs that the ensemble would answer otherwise with it, so that replicas would refuse the swap."""
    unchanged: bool
    """Whether the bundle's own member has these very adapters: the same rows and the same recipe give the same ones."""

    @property
    def swap(self) -> str:
        """The command that makes a server of the bundle answer with it."""
        uris = [f"{self.member}={folder.as_uri()}" for folder in self.folders]
        return shlex.join(["choir", "swap", self.ensemble, *uris])


def retrain(
    recipe_path: Path,
    member: str,
    into: Path,
    data: Path | None = None,
    ensemble: str | None = None,
    *,
    resume: bool = False,
) -> Retrained:
    """Train a member of the bundle `into` (`choir train --member`): on the rows that the bundle was trained on, or on
    those of the file `data`, for which the bundle's training rows are not read.

    The adapter and the member's outputs for the validation rows are stored in the bundle. With `resume`, a retraining
    that was stopped goes on; otherwise it begins anew. Raises RecipeError and BundleError."""
    quiet_libraries()
    request = understood(recipe_path, member, into, ensemble)
    if not resume:
        shutil.rmtree(request.work, ignore_errors=True)
    rows = rows_of(request, data)
    rows.ledger.show(Screen(stderr=True))
    with ProgressTable() as progress_table:
        return _Retraining(request, rows, progress_table).complete()


class _Retraining:
    """One retraining. Its finished steps are recorded apart from the bundle's."""

    def __init__(self, request: Request, rows: Rows, watch: ProgressTable) -> None:
        self._request = request
        self._rows = rows
        self._watch = watch
        self._run = self._begun()

    def _begun(self) -> Run:
        """Begin, or go on with what has begun on the same rows by the same recipe."""
        request, digest = self._request, content_digest(self._rows.train)
        recipe = request.alone
        if not (request.work / "state.json").is_file():
            run = Run.begin(request.work, recipe, self._watch)
            run.finish("data", digest)
            return run
        what, instead = (
            f"the retraining of {request.member.name}",
            "leave --resume out to begin anew",
        )
        run = Run.resumed(request.work, recipe, self._watch, what, instead)
        if run.result("data") != digest:
            raise RecipeError(f"{what} was begun with other rows; {instead}")
        return run

    def complete(self) -> Retrained:
        request = self._request
        trained = self._trained()
        others = [
            trained if each.name == trained.name else each for each in request.manifest.members
        ]
        after = request.manifest.model_copy(update={"members": others})
        with self._run.models:
            figures, wrong = self._judged(trained, after)
        folders = [request.bundle.adapter_dir(ref) for ref in trained.adapters]
        unchanged = trained in [
            each.model_copy(update={"weight": None}) for each in request.manifest.members
        ]
        return Retrained(request.ensemble.name, trained.name, folders, figures, wrong, unchanged)

    def _trained(self) -> Member:
        """Train the member, and put its adapters into the bundle."""
        request = self._request
        base = finished_base(request.began.base, request.began.name, request.bundle)
        workers = LocalWorkers(self._rows.train, self._watch)
        fused = {each.name: _done() for each in request.began.ensembles}
        members = Members(request.alone, self._run, base, request.bundle, None, workers, fused)
        for title in members.outstanding(request.ensemble):
            self._watch.expect(title)
        labels = request.manifest.labels or []
        return members.member(request.member, request.ensemble, labels)

    def _judged(self, trained: Member, after: Ensemble) -> tuple[list[Figure], list[str]]:
        """Return the figures, and the golden inputs that would be answered otherwise."""
        request, own = self._request, self._request.ensemble
        if own.task == "generation":
            report = self._evaluation(request.bundle, after).report(after, self._rows.validation)
            return text_figures(report, _recorded(request), trained.name, after.name), []
        stored = request.bundle.validation_scores(own.name)
        rows = stored.rows()
        if rows is None:
            raise RecipeError(
                f"{request.bundle.path} stores no outputs of the members of {own.name!r}, so that no fusion could be "
                "fitted to the new one; train the bundle again"
            )
        if stored.outputs(trained, rows.header.rows) is None:
            alone = after.model_copy(update={"members": [trained]})
            [outputs] = self._evaluation(request.bundle, alone).outputs(self._rows.validation)
            stored.write_outputs(trained, rows.header.rows, outputs)
        figures = label_figures(request.manifest, after, trained.name, stored, rows)
        found = refitted(after, stored, rows)
        wrong = wrong_golden(after, self._rows.validation, found.served) if found else []
        return figures, wrong

    def _evaluation(self, bundle: Bundle, ensemble: Ensemble) -> Evaluation:
        limit = self._request.ensemble.max_new_tokens
        return Evaluation(bundle, ensemble, self._watch, max_new_tokens=limit)


def _recorded(request: Request) -> EvaluationReport | None:
    """Return the evaluation of the ensemble on the validation rows by the bundle's training."""
    reports = recorded_steps(request.bundle.path).get(f"fusion {request.ensemble.name}") or []
    return EvaluationReport.model_validate(reports[0]) if reports else None


def _done() -> "Future[None]":
    done: Future[None] = Future()
    done.set_result(None)
    return done

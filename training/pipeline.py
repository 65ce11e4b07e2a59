"""The steps of a training run, from a recipe to a bundle. Finished steps are recorded and not repeated."""

import shlex
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any

from serve.bundle import Bundle
from serve.fusion.asking.choice import served_answers
from serve.fusion.fitting.fit import fit_fusion
from serve.fusion.fitting.note import FIGURES, noted
from serve.fusion.fuse import Fusion
from serve.manifest import Ensemble, Member
from serve.terminal.screen import Screen
from training.base_stages import BaseStages
from training.data.splits import Splits
from training.data.targets import known_labels, targets, unknown_label
from training.evaluation.evaluation import (
    Evaluation,
    Labelled,
    baseline_answers,
    label_report,
    labelled,
)
from training.evaluation.golden_inputs import golden_answers
from training.evaluation.scores import EvaluationReport
from training.evaluation.stage_gains import StageGains
from training.evaluation.stored_predictions import ValidationRun
from training.evaluation.tables import MAIN
from training.event_logs import demand_logs
from training.execution.executor import Executor, SequentialExecutor
from training.execution.held_rows import keep_held
from training.execution.progress_table import ProgressTable
from training.execution.run import Run
from training.leaderboard.board import Leaderboard
from training.leaderboard.table import show_board
from training.leaderboards import NEEDED, Boards
from training.lone_rung import write_lone_rung
from training.manifest import draft
from training.members import Members
from training.parallel.options import Parallel
from training.preparation import prepare
from training.progress import quiet_libraries
from training.recipe import (
    DistillationStage,
    EnsembleRecipe,
    Recipe,
    RecipeError,
    load_recipe,
)
from training.report.write import write_report
from training.search import Found, Searches, Study, all_found, demand_method
from training.stages.base import base_spec, finished_base
from training.text_fusion import written_fusion
from training.verdict import conclude, serve_options, verdict


def train(
    recipe_path: Path,
    out: Path,
    resume: bool = False,
    parallel: Parallel | None = None,
    boards: Boards = NEEDED,
) -> Bundle:
    """Run the recipe (`choir train`) and return the finished bundle in `out`.

    With `resume`, the steps that an earlier run finished are skipped. With `parallel`, several members are trained at
    once. `boards` says whether leaderboards are made that the recipe does not need. Raises RecipeError, BundleError
    and ClusterError.
    """
    recipe = load_recipe(recipe_path)
    flags = parallel.flags if parallel else []
    command = shlex.join(["choir", "train", str(recipe_path), "--out", str(out), *flags])
    demand_method(recipe)
    demand_logs(recipe.report_to)
    if parallel is None and recipe.searches:
        # Ray Tune runs the trials, so the run needs Ray: one trial, and later one member, after the other.
        parallel = Parallel(members=1)
    if parallel is not None:
        parallel.prepare()
    progress_table = ProgressTable()
    run = Run.start(out, recipe, progress_table, resume=resume)
    quiet_libraries()
    with _executor(parallel, run) as executor:
        at_once = parallel.members if parallel else None
        pipeline = Pipeline(recipe, run, out, progress_table, executor, at_once, command)
        return pipeline.complete(boards)


def _executor(parallel: Parallel | None, run: Run) -> Executor:
    if parallel is None:
        return SequentialExecutor(run.watch)
    from training.parallel.ray_executor import RayExecutor

    return RayExecutor(parallel, run.folder, run.watch)


class Pipeline:
    """One run of one recipe."""

    def __init__(
        self,
        recipe: Recipe,
        run: Run,
        out: Path,
        progress_table: ProgressTable,
        executor: Executor,
        at_once: int | None,
        command: str,
    ) -> None:
        """`at_once` is the largest number of trials that run together; None means no limit. `command` is what the
        report says made the bundle."""
        self._recipe = recipe
        self._run = run
        self._out = out.absolute()
        self._progress_table = progress_table
        self._executor = executor
        self._at_once = at_once
        self._command = command
        self._prepared = prepare(recipe, run.folder)
        self._splits: Splits = self._prepared.splits
        self._digest = self._splits.digest()
        if run.result("data") not in (None, self._digest):
            raise RecipeError(
                f"the data is not what {out} was begun with; give another --out, or resume with that data"
            )

    def complete(self, boards: Boards) -> Bundle:
        """Do all steps that are not done yet, and return the bundle. Raises RecipeError and BundleError."""
        self._prepared.ledger.show(Screen(stderr=True))
        with self._progress_table:
            bundle, reports = self._made()
            judged = boards.made(self._recipe, self._run, bundle)
        self._report(reports, bundle, judged, boards.problems)
        return bundle

    def _made(self) -> tuple[Bundle, list[EvaluationReport]]:
        """Make everything in the bundle except its report; return the bundle and the evaluations to report."""
        recipe, run, splits = self._recipe, self._run, self._splits
        labels = {ensemble.name: self._labels(ensemble) for ensemble in recipe.ensembles}
        stage_gains = StageGains(recipe, run, splits)
        if (self._out / "bundle.json").exists():
            bundle = Bundle.open(self._out)
            base = finished_base(recipe.base, recipe.name, bundle)
        else:
            base = BaseStages(recipe, run, splits, labels, stage_gains).make(self._out / "base")
            run.finish("data", self._digest)
            bundle = Bundle.create(self._out, base_spec(recipe.base, base, self._out / "base"))
        keep_held(run.folder, splits)
        workers = self._executor.workers(splits.train, [base.folder, *_teachers(recipe)])
        recipe = Searches(recipe, run, base, labels, self._tuned).chosen()
        fused: dict[str, Future[None]] = {each.name: Future() for each in recipe.ensembles}
        members = Members(recipe, run, base, bundle, stage_gains, workers, fused)
        validation = ValidationRun(recipe, run, base, bundle, splits.families)
        try:
            reports = self._ensembles(
                recipe, members, labels, bundle, stage_gains, validation, fused
            )
        finally:
            # After a failure, students must not wait for teachers that are never finished.
            for each in fused.values():
                each.cancel()
        return bundle, reports

    def _tuned(self, study: Study, folder: Path) -> Found:
        # Ray reads its options on import, and they are set only now.
        from training.parallel.trials import tune

        return tune(study, self._splits.train, folder, self._run.watch, self._at_once)

    def _ensembles(
        self,
        recipe: Recipe,
        members: Members,
        labels: Mapping[str, list[str]],
        bundle: Bundle,
        stage_gains: StageGains,
        validation: ValidationRun,
        fused: Mapping[str, Future[None]],
    ) -> list[EvaluationReport]:
        """Train the members of all ensembles, and fuse each ensemble when its members are ready."""
        for ensemble in recipe.ensembles:
            for title in members.outstanding(ensemble):
                self._progress_table.expect(title)
        begun = [
            (
                ensemble,
                [
                    self._executor.start(
                        partial(members.member, each, ensemble, labels[ensemble.name])
                    )
                    for each in ensemble.members
                ],
                {
                    each.name: self._executor.start(
                        partial(members.candidate, each, ensemble, labels[ensemble.name])
                    )
                    for each in ensemble.candidates
                },
                self._executor.start(
                    partial(members.member, ensemble.rival, ensemble, labels[ensemble.name])
                )
                if ensemble.rival
                else None,
            )
            for ensemble in recipe.ensembles
        ]
        reports: list[EvaluationReport] = []
        for ensemble, trained, candidates, rival in begun:
            manifest = draft(ensemble, [each.result() for each in trained], labels[ensemble.name])
            others = {name: each.result() for name, each in candidates.items()}
            with self._run.models:
                if ensemble.task != "generation":
                    rows = labelled(self._splits.validation, "validation", self._recipe, ensemble)
                    validation.store(ensemble, manifest, others, rows)
                reports += self._fuse(ensemble, manifest, bundle, validation)
            if rival is not None:
                self._write_rival(ensemble, rival.result(), bundle)
            reports += stage_gains.reports(ensemble)
            fused[ensemble.name].set_result(None)
        return reports

    def _write_rival(self, recipe: EnsembleRecipe, rival: Member, bundle: Bundle) -> None:
        step = f"rung {recipe.name}/{rival.name}"
        if self._run.result(step) is None:
            rows = labelled(self._splits.validation, "validation", self._recipe, recipe)
            manifest = bundle.ensemble(recipe.name)
            with self._run.models:
                write_lone_rung(bundle, manifest, rival, "rival", rows, {}, self._run.watch)
            self._run.finish(step, True)

    def _report(
        self,
        reports: Sequence[EvaluationReport],
        bundle: Bundle,
        boards: Sequence[Leaderboard],
        problems: Sequence[str],
    ) -> None:
        searches = all_found(self._run)
        facts = {
            "recipe": self._recipe.name,
            "created": bundle.info.created,
            "choir": bundle.info.choir,
            "command": self._command,
            "data": self._prepared.ledger.facts(),
            "curves": self._run.results("curve "),
            # Pretraining losses on held-out documents, in nats per token.
            "pretraining": [each for each in self._run.results("base") if each is not True],
        }
        if searches:
            facts["searches"] = [each.model_dump() for each in searches]
        notes = [each.line() for each in searches]
        diversities = write_report(bundle, self._recipe.name, reports, facts, notes)
        notes += [each.line() for each in diversities]
        screen = Screen()
        for board in boards:
            show_board(board, self._out, screen)
        notes += problems
        conclude(screen, reports, notes, self._out, serve_options(bundle))

    def _labels(self, ensemble: EnsembleRecipe) -> list[str]:
        """Return the ensemble's labels in their order; none for a task without labels.

        Raises RecipeError if some rows have another label or, in regression, no number."""
        if ensemble.task == "generation":
            return []
        task, column = ensemble.task, ensemble.answer
        known = ensemble.labels or known_labels(task, list(self._splits.train[column]))
        for name in ("train", "validation", "test"):
            rows = getattr(self._splits, name)
            cells = list(rows[column]) if rows is not None else []
            unknown = unknown_label(task, known, cells)
            if unknown is not None:
                raise RecipeError(
                    f"ensemble {ensemble.name!r}: the label {unknown!r} of the {name} rows is not among the "
                    f"{len(known)} labels that members are trained on"
                )
            targets(task, known, cells, f"ensemble {ensemble.name!r}, {name} rows")
        return known

    def _fuse(
        self,
        recipe: EnsembleRecipe,
        draft: Ensemble,
        bundle: Bundle,
        validation: ValidationRun,
    ) -> list[EvaluationReport]:
        """Fit the fusion on the validation rows, write the manifest, and evaluate it on validation and test rows."""
        step = f"fusion {recipe.name}"
        if self._run.result(step) is None:
            evaluation = Evaluation(
                bundle,
                draft,
                self._run.watch,
                max_new_tokens=recipe.max_new_tokens,
                extract=recipe.extract,
            )
            rows = labelled(self._splits.validation, "validation", self._recipe, recipe)
            if recipe.task == "generation":
                ensemble, report = written_fusion(recipe, draft, bundle, evaluation, rows)
            else:
                ensemble, report = self._fit(recipe, draft, bundle, validation, rows)
            ensemble = _with_scores(ensemble, report, all_found(self._run))
            bundle.write_ensemble(ensemble)
            reports = [report]
            if self._splits.test is not None:
                test = labelled(self._splits.test, "test", self._recipe, recipe)
                training = labelled(self._splits.known, "training", self._recipe, recipe)
                baselines = baseline_answers(recipe, ensemble, training, test)
                reports.append(evaluation.report(ensemble, test, baselines))
            self._run.finish(step, [report.model_dump() for report in reports])
        return [EvaluationReport.model_validate(report) for report in self._run.result(step) or []]

    def _fit(
        self,
        recipe: EnsembleRecipe,
        draft: Ensemble,
        bundle: Bundle,
        validation: ValidationRun,
        rows: Labelled,
    ) -> tuple[Ensemble, EvaluationReport]:
        stored, outputs = validation.read(draft)
        truth = stored.truth
        vectors = validation.vectors(stored, draft)
        fitted = fit_fusion(draft, recipe.fusion.options, outputs, truth, stored.folds, vectors)
        if fitted.parameters:
            fitted.parameters.write(bundle.path / str(fitted.ensemble.fusion.parameters))
        # The report has cross-fitted answers; golden inputs need the answers that engines give.
        served = served_answers(Fusion(fitted.ensemble, fitted.parameters), outputs, vectors)
        golden = golden_answers(rows, truth, served, draft.labels or [])
        ensemble = fitted.ensemble.model_copy(update={"golden": golden[: recipe.golden]})
        return ensemble, label_report(ensemble, rows, outputs, truth, fitted.validation)


def _teachers(recipe: Recipe) -> list[Path]:
    """Return the folders of models outside the bundle that students learn from."""
    stages = (
        stage
        for ensemble in recipe.ensembles
        for member in [*ensemble.members, *ensemble.candidates]
        for stage in member.stages
    )
    return [
        stage.teacher.path
        for stage in stages
        if isinstance(stage, DistillationStage) and stage.teacher.path is not None
    ]


def _with_scores(
    ensemble: Ensemble, report: EvaluationReport, searches: Sequence[Found]
) -> Ensemble:
    """Add the validation figures and the values of searches to the manifest, and validate it."""
    best = report.best_member(MAIN[ensemble.task])
    scores: dict[str, Any] = {
        **ensemble.scores,
        FIGURES: {**report.served().scores, "best_member": best},
        "verdict": verdict(report),
    }
    if found := {each.title: each.values for each in searches if each.ensemble == ensemble.name}:
        scores["search"] = found
    scored = ensemble.model_copy(update={"scores": scores})
    if ensemble.task != "generation":
        scored = noted(scored, "fitted", report.count)
    return Ensemble.model_validate(scored.model_dump())

"""From a recipe to a bundle, step by step; each finished step is recorded and never done twice."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from datasets import concatenate_datasets
from rich.console import Console

from serve.bundle import AdapterRef, Bundle, Ensemble, FusionSpec, Golden, Member
from serve.fusion.fused import Fused
from training.data.splits import Splits
from training.evaluation import (
    Evaluation,
    Labelled,
    baseline_answers,
    label_report,
    labelled,
)
from training.fitting import fit_fusion
from training.preparation import prepare
from training.progress import progress_bars, quiet_libraries
from training.recipe import (
    CandidateRecipe,
    EnsembleRecipe,
    MemberRecipe,
    Recipe,
    RecipeError,
    load_recipe,
)
from training.report import write_report
from training.run import Run
from training.scores import Report
from training.stages.base import Base, base_spec, find_base
from training.stages.fit import Stage
from training.stages.member import MemberData, MemberStage, train_stage
from training.stages.scratch import train_base
from training.tables import MAIN, show
from training.targets import Targets, known_labels, targets, unknown_label

CANDIDATES = "candidates"
"""Folder below the bundle for adapters that no ensemble uses yet."""

VOCABULARY_WEIGHT = 20
"""How often a label's text is repeated for the tokenizer, so that short labels become one token."""


def train(recipe_path: Path, out: Path, resume: bool = False) -> Bundle:
    """`choir train`: run the recipe and return the finished bundle.

    With `resume`, steps that an earlier run into `out` finished are skipped. Raises RecipeError and BundleError.
    """
    recipe = load_recipe(recipe_path)
    run = Run.start(out, recipe, resume=resume)
    quiet_libraries()
    return Pipeline(recipe, run, out).complete()


class Pipeline:
    """One run of one recipe."""

    def __init__(self, recipe: Recipe, run: Run, out: Path) -> None:
        self._recipe = recipe
        self._run = run
        self._out = out
        self._console = Console(stderr=True)
        self._prepared = prepare(recipe, run.folder)
        self._splits: Splits = self._prepared.splits

    def complete(self) -> Bundle:
        """Do every step that is not done yet."""
        self._prepared.ledger.show(self._console)
        base = self._base()
        if not (self._out / "bundle.json").exists():
            Bundle.create(self._out, base_spec(self._recipe.base, base, self._out / "base"))
        bundle = Bundle.open(self._out)
        reports: list[Report] = []
        for ensemble in self._recipe.ensembles:
            labels = self._labels(ensemble)
            draft = self._draft(ensemble, labels, base, bundle)
            for candidate in ensemble.candidates:
                self._candidate(candidate, ensemble, base, labels)
            reports += self._fuse(ensemble, draft, bundle)
        facts = {
            "recipe": self._recipe.name,
            "created": bundle.info.created,
            "choir": bundle.info.choir,
            "data": self._prepared.ledger.facts(),
        }
        write_report(self._out / "report", self._recipe.name, reports, facts)
        for report in reports:
            show(report, self._console)
        return bundle

    def _base(self) -> Base:
        recipe, own = self._recipe.base, self._out / "base"
        if recipe.scratch and self._run.result("base") is None:
            texts = [text for ensemble in self._recipe.ensembles for text in _vocabulary(ensemble)]
            with self._stage("base") as stage:
                train_base(recipe.scratch, self._splits.train, texts, own, self._recipe.seed, stage)
            self._run.finish("base", True)
        return find_base(recipe, self._recipe.name, own)

    def _labels(self, ensemble: EnsembleRecipe) -> list[str]:
        """The labels in their order, none for a task without.

        Raises RecipeError when some rows have labels that these lack, or no number where values are answered."""
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

    def _draft(
        self, ensemble: EnsembleRecipe, labels: list[str], base: Base, bundle: Bundle
    ) -> Ensemble:
        """The manifest before its fusion is fitted; trains the members."""
        members = []
        for member in ensemble.members:
            step = f"member {ensemble.name}/{member.name}"
            if self._run.result(step) is None:
                name = f"{ensemble.name}-{member.name}"
                folder = self._run.folder / "trained" / name
                trained = self._train(member, ensemble, base, labels, folder)
                refs = [
                    # A member's further adapters are named after what they are.
                    bundle.add_adapter(f"{name}-{stage.kind}" if number else name, adapter)
                    for number, (stage, adapter) in enumerate(
                        zip(member.stages, trained, strict=True)
                    )
                ]
                self._run.finish(step, [ref.model_dump() for ref in refs])
                shutil.rmtree(folder)
            adapters = [AdapterRef.model_validate(ref) for ref in self._run.result(step) or []]
            members.append(Member(name=member.name, adapters=adapters))
        method = ensemble.fusion.method
        return Ensemble(
            format=1,
            name=ensemble.name,
            version=1,
            task=ensemble.task,
            members=members,
            # Classification's is a draft until its fusion is fitted.
            fusion=FusionSpec(
                method=method if ensemble.task == "generation" and method != "best" else "average",
                extract=ensemble.extract,
            ),
            labels=labels or None,
            template=ensemble.template,
            verbalizers=ensemble.verbalizers,
            label_scoring=ensemble.label_scoring,
            on_member_error=ensemble.on_member_error,
        )

    def _candidate(
        self, candidate: CandidateRecipe, ensemble: EnsembleRecipe, base: Base, labels: list[str]
    ) -> None:
        step = f"candidate {ensemble.name}/{candidate.name}"
        if self._run.result(step) is None:
            folder = self._out / CANDIDATES / f"{ensemble.name}-{candidate.name}"
            self._train(candidate, ensemble, base, labels, folder)
            self._run.finish(
                step, {"member": candidate.member, "folder": str(folder.relative_to(self._out))}
            )

    def _train(
        self,
        member: MemberRecipe,
        ensemble: EnsembleRecipe,
        base: Base,
        labels: list[str],
        target: Path,
    ) -> list[Path]:
        """The member's adapters: one lies in `target` itself, those of several stages in folders below it."""
        options = self._recipe.data
        data = MemberData(
            self._splits.train, options.text, labels, options.max_tokens, options.text_pair
        )
        name, several = f"{ensemble.name}/{member.name}", len(member.stages) > 1
        trained: list[Path] = []
        for number, recipe in enumerate(member.stages, start=1):
            own = MemberStage(member, recipe, tuple(trained))
            folder = target / f"{number}-{recipe.kind}" if several else target
            step = f"stage {name}/{number}"
            if not several or self._run.result(step) is None:
                with self._stage(f"{name}/{recipe.kind}" if several else name) as stage:
                    train_stage(own, ensemble, base, data, stage, folder)
                if several:
                    self._run.finish(step, True)
            trained.append(folder)
        return trained

    def _fuse(self, recipe: EnsembleRecipe, draft: Ensemble, bundle: Bundle) -> list[Report]:
        """Fit the fusion on the validation rows, write the manifest, and judge it on validation and test rows."""
        step = f"fusion {recipe.name}"
        if self._run.result(step) is None:
            evaluation = Evaluation(bundle, draft, max_new_tokens=recipe.max_new_tokens)
            rows = labelled(self._splits.validation, "validation", self._recipe, recipe)
            if recipe.task == "generation":
                ensemble, report = draft, evaluation.report(draft, rows)
            else:
                ensemble, report = self._fit(recipe, draft, bundle, evaluation, rows)
            ensemble = _with_scores(ensemble, report)
            bundle.write_ensemble(ensemble)
            reports = [report]
            if self._splits.test is not None:
                test = labelled(self._splits.test, "test", self._recipe, recipe)
                known = concatenate_datasets([self._splits.train, self._splits.validation])
                training = labelled(known, "training", self._recipe, recipe)
                baselines = baseline_answers(recipe, ensemble, training, test)
                reports.append(evaluation.report(ensemble, test, baselines))
            self._run.finish(step, [report.model_dump() for report in reports])
        return [Report.model_validate(report) for report in self._run.result(step) or []]

    def _fit(
        self,
        recipe: EnsembleRecipe,
        draft: Ensemble,
        bundle: Bundle,
        evaluation: Evaluation,
        rows: Labelled,
    ) -> tuple[Ensemble, Report]:
        truth = rows.targets(draft)
        outputs = evaluation.outputs(rows)
        fitted = fit_fusion(
            draft, recipe.fusion, outputs, truth, self._recipe.seed, self._splits.groups
        )
        if fitted.stack:
            fitted.stack.write(bundle.path / str(fitted.ensemble.fusion.parameters))
        served = fitted.validation[fitted.ensemble.fusion.method]
        golden = _golden(rows, served, truth) if isinstance(served, Fused) else []
        ensemble = fitted.ensemble.model_copy(update={"golden": golden[: recipe.golden]})
        return ensemble, label_report(ensemble, rows, outputs, truth, fitted.validation)

    @contextmanager
    def _stage(self, title: str) -> Iterator[Stage]:
        """A stage's checkpoints and progress bar; the checkpoints go when the stage has succeeded."""
        folder = self._run.folder / "checkpoints" / title.replace("/", "-")
        with progress_bars() as bars:
            yield Stage(title, folder, self._recipe.precision, bars)
        shutil.rmtree(folder, ignore_errors=True)


def _vocabulary(ensemble: EnsembleRecipe) -> list[str]:
    """Prompts and labels, often enough for the tokenizer to learn their words."""
    prompt = ensemble.template.replace("{text}", "")
    return [
        prompt + text
        for text in ["", *ensemble.verbalizers.values()]
        for _ in range(VOCABULARY_WEIGHT)
    ]


def _golden(rows: Labelled, served: Fused, truth: Targets) -> list[Golden]:
    """The rows that the fusion answers rightly."""
    right = served.winners == truth
    return [
        Golden(input=text, label=answer)
        for text, answer, is_right in zip(rows.texts, rows.answers, right, strict=True)
        if is_right
    ]


def _with_scores(ensemble: Ensemble, report: Report) -> Ensemble:
    """The manifest with its validation figures, checked as a whole."""
    best = report.best_member(MAIN[ensemble.task])
    scores = {"validation": {**report.served().scores, "best_member": best}}
    return Ensemble.model_validate(ensemble.model_copy(update={"scores": scores}).model_dump())

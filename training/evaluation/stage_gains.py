"""Stage gains: the figures on the validation rows after each stage of a chain."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from serve.bundle import BaseSpec, Bundle
from serve.manifest import Member
from training.data.splits import Splits
from training.evaluation.evaluation import Evaluation, labelled
from training.evaluation.scores import EvaluationReport, Row
from training.execution.run import Run
from training.manifest import draft
from training.recipe import EnsembleRecipe, Recipe


class StageGains:
    """Evaluates each chain after each stage, and records the figures in the run. A resumed run does not repeat this."""

    def __init__(self, recipe: Recipe, run: Run, splits: Splits) -> None:
        self._recipe = recipe
        self._run = run
        self._splits = splits

    def judge(
        self,
        name: str,
        adapters: Sequence[Path],
        ensemble: EnsembleRecipe,
        labels: Sequence[str],
        base: Path,
    ) -> None:
        """Record the figures of the base in the folder `base` with `adapters` on the ensemble's task. `name` is the
        chain's."""
        step = f"gain {ensemble.name}/{name}"
        if self._run.result(step) is not None:
            return
        with self._run.models:
            self._run.finish(step, self._figures(name, adapters, ensemble, labels, base))

    def _figures(
        self,
        name: str,
        adapters: Sequence[Path],
        ensemble: EnsembleRecipe,
        labels: Sequence[str],
        base: Path,
    ) -> dict[str, Any]:
        work = self._run.folder / "judged"
        shutil.rmtree(work, ignore_errors=True)
        spec = BaseSpec(path=str(base.resolve()), kind=self._recipe.base.bundle_kind)
        bundle = Bundle.create(work, spec)
        refs = [bundle.add_adapter(f"stage-{n}", folder) for n, folder in enumerate(adapters)]
        manifest = draft(ensemble, [Member(name="chain", adapters=refs)], labels)
        rows = labelled(self._splits.validation, "validation", self._recipe, ensemble)
        limit = ensemble.max_new_tokens
        evaluation = Evaluation(bundle, manifest, self._run.watch, max_new_tokens=limit)
        report = evaluation.report(manifest, rows)
        member = next(row for row in report.rows if row.kind == "member")
        row = member.model_copy(update={"name": name, "kind": "stage"})
        shutil.rmtree(work)
        return {"count": report.count, "row": row.model_dump()}

    def reports(self, ensemble: EnsembleRecipe) -> list[EvaluationReport]:
        """Return one report with the figures of all chains of an ensemble; empty if there are none.

        The base comes first, and then the members in the recipe's order."""
        steps = self._run.results(f"gain {ensemble.name}/")
        if not steps:
            return []
        order = [member.name for member in ensemble.members]
        rows = [Row.model_validate(step["row"]) for step in steps]
        rows.sort(key=lambda row: order.index(name) if (name := _member(row.name)) else -1)
        return [
            EvaluationReport(
                ensemble=f"{ensemble.name}@1",
                data="stage-by-stage validation",
                count=steps[0]["count"],
                rows=rows,
            )
        ]


def _member(chain: str) -> str:
    """Return the name of the member that a chain belongs to; empty for the base's chain."""
    name, colon, _ = chain.partition(": ")
    return name if colon else ""

"""What each stage gained: figures on the validation rows after every stage of a chain."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from serve.bundle import BaseSpec, Bundle, Member
from training.data.splits import Splits
from training.evaluation import Evaluation, labelled
from training.manifest import draft
from training.recipe import EnsembleRecipe, Recipe
from training.run import Run
from training.scores import Report, Row


class Gains:
    """Judges a chain as far as it has come, once; a resumed run knows the figures of the one before."""

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
        """Record the figures of the model in `base` with `adapters` at the ensemble's task."""
        step = f"gain {ensemble.name}/{name}"
        if self._run.result(step) is not None:
            return
        work = self._run.folder / "judged"
        shutil.rmtree(work, ignore_errors=True)
        bundle = Bundle.create(
            work, BaseSpec(path=str(base.resolve()), kind=self._recipe.base.kind)
        )
        refs = [bundle.add_adapter(f"stage-{n}", folder) for n, folder in enumerate(adapters)]
        manifest = draft(ensemble, [Member(name="chain", adapters=refs)], labels)
        rows = labelled(self._splits.validation, "validation", self._recipe, ensemble)
        limit = ensemble.max_new_tokens
        report = Evaluation(bundle, manifest, max_new_tokens=limit).report(manifest, rows)
        member = next(row for row in report.rows if row.kind == "member")
        row = member.model_copy(update={"name": name, "kind": "stage"})
        self._run.finish(step, {"count": report.count, "row": row.model_dump()})
        shutil.rmtree(work)

    def reports(self, ensemble: EnsembleRecipe) -> list[Report]:
        """All that was judged of an ensemble, in order, as one report; none where it has no chain."""
        steps = self._run.results(f"gain {ensemble.name}/")
        if not steps:
            return []
        return [
            Report(
                ensemble=f"{ensemble.name}@1",
                data="stage-by-stage validation",
                count=steps[0]["count"],
                rows=[Row.model_validate(step["row"]) for step in steps],
            )
        ]

"""Stores the outputs of members and candidates for the validation rows in the bundle. The fusion is fitted on them, and
again when a swap brings other adapters."""

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from serve.bundle import BaseSpec, Bundle
from serve.digest import folder_digest
from serve.fusion.fitting.stored_scores import Question, RowsHeader, ValidationRows
from serve.manifest import AdapterRef, Ensemble, Member
from training.data.splits import fold_plan
from training.evaluation.evaluation import Evaluation, Labelled
from training.execution.run import Run
from training.manifest import draft
from training.recipe import EnsembleRecipe, Recipe
from training.stages.base import Base


class ValidationRun:
    """Runs members and candidates on the validation rows, once for each ensemble. A resumed run does not repeat
    this."""

    def __init__(
        self, recipe: Recipe, run: Run, base: Base, bundle: Bundle, families: Sequence[int]
    ) -> None:
        """`families` [N] are those of the validation rows; the folds of a cross-fitted figure keep them together."""
        self._recipe = recipe
        self._run = run
        self._base = base
        self._bundle = bundle
        self._families = families

    def store(
        self,
        recipe: EnsembleRecipe,
        ensemble: Ensemble,
        candidates: Mapping[str, Sequence[Path]],
        rows: Labelled,
    ) -> None:
        """Store the outputs of the ensemble's members and `candidates` for `rows`. `candidates` maps names to the
        folders of their adapters."""
        step = f"scores {recipe.name}"
        stored = self._bundle.validation_scores(recipe.name)
        header = RowsHeader(
            rows=rows_digest(rows, ensemble),
            question=Question.of(ensemble),
            options=recipe.fusion.options,
        )
        if self._run.result(step) is None:
            truth = rows.targets(ensemble)
            folds = fold_plan(self._families, recipe.fusion.folds, self._recipe.seed)
            self._ask(self._bundle, ensemble, rows, header.rows)
            if "gate" in header.options.methods(recipe.task):
                vectors = Evaluation(self._bundle, ensemble, self._run.watch).base_vectors(rows)
                stored.write_vectors(header.rows, vectors)
            stored.write_rows(ValidationRows(header, truth, folds))
            self._run.finish(step, {"rows": len(truth)})
        # A candidate may have been added to the recipe after the members were asked.
        lacking = {
            name: folders
            for name, folders in candidates.items()
            if stored.outputs(_member(name, folders), header.rows) is None
        }
        if lacking:
            self._ask_candidates(recipe, ensemble, lacking, rows, header.rows)

    def read(self, ensemble: Ensemble) -> tuple[ValidationRows, NDArray[np.float64]]:
        """Return the stored rows, and the members' outputs [M, N, C] or [M, N]."""
        stored = self._bundle.validation_scores(ensemble.name)
        rows = stored.rows()
        assert rows is not None, "they were stored before"
        outputs = [stored.outputs(member, rows.header.rows) for member in ensemble.members]
        return rows, np.stack([each for each in outputs if each is not None])

    def vectors(self, stored: ValidationRows, ensemble: Ensemble) -> NDArray[np.float64] | None:
        """Return the base's vectors of the stored rows; None if no gate is fitted on them."""
        return self._bundle.validation_scores(ensemble.name).vectors(stored.header.rows)

    def _ask(self, bundle: Bundle, ensemble: Ensemble, rows: Labelled, digest: str) -> None:
        outputs = Evaluation(bundle, ensemble, self._run.watch).outputs(rows)
        stored = self._bundle.validation_scores(ensemble.name)
        for member, own in zip(ensemble.members, outputs, strict=True):
            stored.write_outputs(member, digest, own)

    def _ask_candidates(
        self,
        recipe: EnsembleRecipe,
        ensemble: Ensemble,
        candidates: Mapping[str, Sequence[Path]],
        rows: Labelled,
        digest: str,
    ) -> None:
        """Store the outputs of candidates. They run in a temporary bundle, because this one has no entries for them."""
        work = self._run.folder / "asked"
        shutil.rmtree(work, ignore_errors=True)
        kind = self._recipe.base.bundle_kind
        base = BaseSpec(path=str(self._base.folder.resolve()), kind=kind)
        bundle = Bundle.create(work, base)
        members = [
            Member(
                name=name,
                adapters=[bundle.add_adapter(f"adapter-{n}", each) for n, each in enumerate(own)],
            )
            for name, own in candidates.items()
        ]
        self._ask(bundle, draft(recipe, members, ensemble.labels or []), rows, digest)
        shutil.rmtree(work)


def _member(name: str, folders: Sequence[Path]) -> Member:
    """Return a member with the adapters in these folders."""
    refs = [AdapterRef(adapter=name, digest=folder_digest(folder)) for folder in folders]
    return Member(name=name, adapters=refs)


def rows_digest(rows: Labelled, ensemble: Ensemble) -> str:
    """Return the digest of texts, their right answers and the question, which every stored file of an ensemble has."""
    question = Question.of(ensemble).model_dump(mode="json", exclude_defaults=True)
    content = [question, list(rows.texts), list(rows.pairs or []), list(rows.answers)]
    return f"sha256:{hashlib.sha256(json.dumps(content).encode()).hexdigest()}"

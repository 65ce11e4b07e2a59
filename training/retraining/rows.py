"""The rows of a retraining: what the member is trained on, and the validation rows that it is asked about."""

from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset

from training.data.ledger import Ledger
from training.data.splits import Splits
from training.data.steps import StepCache
from training.data.targets import targets
from training.evaluation.evaluation import Labelled, labelled
from training.evaluation.stored_predictions import rows_digest
from training.execution.held_rows import keep_held, kept
from training.execution.run import recorded_data
from training.preparation import Preparation
from training.recipe import Recipe, RecipeError
from training.recipe.data import DataRecipe
from training.recipe.source import Source
from training.retraining.request import Request


@dataclass(frozen=True)
class Rows:
    """The rows, and what was done to them."""

    train: Dataset
    """As members read them."""
    validation: Labelled
    """The bundle's."""
    ledger: Ledger


def rows_of(request: Request, data: Path | None) -> Rows:
    """Return the rows of the file `data`, or else those that the bundle was trained on. The bundle's validation rows
    are the ones that its training kept, so that its training rows need not be there for `data`. Raises RecipeError."""
    ledger = Ledger(request.work / "data")
    if data is None:
        splits = _splits(request, request.recipe, ledger)
        train, validation = splits.train, splits.validation
    else:
        held = _held(request)
        train = Preparation(_with_file(request, data), _cache(request), ledger).newer(held)
        validation = held["validation"]
        ensemble = request.ensemble
        cells = list(train[ensemble.answer])
        targets(ensemble.task, ensemble.labels or [], cells, data.name)
    asked = labelled(validation, "validation", request.recipe, request.ensemble)
    stored = request.bundle.validation_scores(request.ensemble.name).rows()
    if stored is not None and stored.header.rows != rows_digest(asked, request.manifest):
        raise RecipeError(
            f"the validation rows of {request.bundle.path} are not those that its fusion was fitted on; train a new "
            "bundle"
        )
    return Rows(train, asked, ledger)


def _held(request: Request) -> dict[str, Dataset]:
    """Return the validation and test rows of the bundle."""
    if kept(request.record, "validation") is None:
        # A bundle of an earlier version, which did not keep them.
        keep_held(request.record, _splits(request, request.began, Ledger(request.work / "data")))
    rows = {split: kept(request.record, split) for split in ("validation", "test")}
    return {split: own for split, own in rows.items() if own is not None}


def _splits(request: Request, recipe: Recipe, ledger: Ledger) -> Splits:
    """Return the splits by a recipe, if they are those that the bundle was trained on."""
    splits = Preparation(recipe, _cache(request), ledger).complete().splits
    if splits.digest() != recorded_data(request.bundle.path):
        raise RecipeError(
            f"the recipe's rows are not those that {request.bundle.path} was trained on: files or keys of the data "
            "have changed; give the rows to train on with --data FILE"
        )
    return splits


def _with_file(request: Request, data: Path) -> Recipe:
    """Return the recipe with the rows of `data` as its training rows. The file is read as the recipe's own of its
    kind."""
    own = request.recipe.data
    like = next((each for each in own.train or [] if _alike(each, data)), Source(path=data))
    source = like.model_copy(update={"path": data.absolute(), "weight": 1.0})
    split = own.split.model_copy(update={"test_fraction": None})
    others = {"validation": None, "test": None, "example": None, "annotate": None}
    changed: DataRecipe = own.model_copy(update={**others, "train": [source], "split": split})
    # The base is trained already, so that columns which only its documents name are not needed.
    base = request.recipe.base.model_copy(update={"scratch": None, "stages": []})
    return request.alone.model_copy(update={"data": changed, "base": base})


def _alike(source: Source, data: Path) -> bool:
    return source.path is not None and source.path.suffix == data.suffix


def _cache(request: Request) -> StepCache:
    return StepCache(request.record / "cache")

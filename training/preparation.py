"""Prepares a recipe's data: collects, labels, cleans, splits and weights the rows.

Every row that leaves is counted and written to a quarantine file.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset

from training.data.cleaning.clean import Columns, checks, unusable
from training.data.cleaning.duplicates import exact_duplicates, label_conflicts
from training.data.collect import collect, from_rows
from training.data.ledger import Ledger
from training.data.loading import more_rows, refuse_empty, refuse_unreadable
from training.data.parts import part_columns, refuse_missing_parts
from training.data.splits import Splits, repeated
from training.data.splitter import Splitter
from training.data.steps import (
    FAMILY,
    ORIGIN,
    WEIGHT,
    Count,
    Outcome,
    StepCache,
    leave,
    visible,
)
from training.data.targets import known_labels, unknown_label
from training.example import digits, messages
from training.labelling import guessed_rows, reviewed_rows, teacher_identity, with_rows
from training.recipe import Recipe, RecipeError, load_recipe
from training.recipe.annotate import AnnotateRecipe
from training.recipe.source import Source

EXAMPLES = {"messages": messages.rows, "digits": digits.rows}
"""What makes the rows that Choir brings, by `data.example.kind`."""
REMEDY = "; with `data.clean` such rows are put aside and counted"


@dataclass(frozen=True)
class Prepared:
    """The splits, and the ledger of the steps that made them."""

    splits: Splits
    ledger: Ledger


def load_splits(recipe: Recipe, folder: Path) -> Splits:
    """Return the recipe's splits. The same recipe with the same data gives the same splits. Raises RecipeError."""
    return prepare(recipe, folder).splits


def prepare(recipe: Recipe, folder: Path) -> Prepared:
    """Do all steps. Writes a cache to `folder/cache`, and `quarantine.jsonl`, `review.jsonl` and `counts.json` to
    `folder/data`. Raises RecipeError."""
    return Preparation(recipe, StepCache(folder / "cache"), Ledger(folder / "data")).complete()


def write_splits(recipe_path: Path, out: Path) -> Prepared:
    """Do all steps without training (`choir prepare`). Writes `train.jsonl`, `validation.jsonl` and `test.jsonl` to
    `out`, beside the ledger's files. Raises RecipeError."""
    recipe = load_recipe(recipe_path)
    if out.exists() and not out.is_dir():
        raise RecipeError(f"{out} is a file; --out names a folder")
    prepared = Preparation(recipe, StepCache(out / ".cache"), Ledger(out)).complete()
    for name in ("train", "validation", "test"):
        rows: Dataset | None = getattr(prepared.splits, name)
        if rows is not None:
            visible(rows).to_json(out / f"{name}.jsonl", force_ascii=False)
    return prepared


def recipe_columns(recipe: Recipe) -> list[str]:
    """Return the columns that the ensembles read, the input first. The base may read more (`BaseRecipe.columns`)."""
    answers = [ensemble.answer for ensemble in recipe.ensembles]
    return list(dict.fromkeys([*recipe.data.inputs, *answers]))


class Preparation:
    """Prepares the data of one recipe."""

    def __init__(self, recipe: Recipe, cache: StepCache, ledger: Ledger) -> None:
        self._recipe, self._data, self._cache, self._ledger = recipe, recipe.data, cache, ledger
        self._columns = recipe_columns(recipe)
        self._meaning = Columns(
            text=recipe.data.input,
            answers=list(dict.fromkeys(each.answer for each in recipe.ensembles)),
            labels=[e.answer for e in recipe.ensembles if e.task == "classification"],
            pair=recipe.data.second,
            may_be_empty=[e.answer for e in recipe.ensembles if e.task == "multilabel"],
            images=bool(recipe.data.images),
        )

    def complete(self) -> Prepared:
        train, validation, test = self._collected()
        if self._data.annotate is not None:
            train = self._annotated(train, self._data.annotate)
        train = self._usable(train, "train")
        validation = self._usable(validation, "validation") if validation is not None else None
        test = self._usable(test, "test") if test is not None else None
        train = self._look_at(train) if self._data.clean is None else self._cleaned(train, "train")
        if self._data.clean is not None and validation is not None:
            validation = self._cleaned(validation, "validation")
        splitter = Splitter(self._data, self._meaning, self._recipe.seed, self._cache, self._ledger)
        parts = splitter.split({"train": train, "validation": validation, "test": test})
        train, validation, test = parts["train"], parts["validation"], parts.get("test")
        self._demand_labels(train)
        refuse_missing_parts(train, self._recipe)
        train = self._weighted(train)
        validation = self._known_labels(train, validation, "validation")
        test = self._known_labels(train, test, "test") if test is not None else None
        self._ledger.write()
        return Prepared(
            Splits(
                visible(train, [*self._training_columns(), FAMILY]),
                visible(validation, self._columns),
                visible(test, self._columns) if test is not None else None,
                list(validation[FAMILY]),
            ),
            self._ledger,
        )

    def newer(self, held: Mapping[str, Dataset]) -> Dataset:
        """Return training rows, as members read them, for the validation and test rows of an earlier run, which stay as
        they are. The ensembles name their labels. Raises RecipeError."""
        train = self._collect(self._data.train or [], self._given_columns(), "train")
        train = self._usable(train, "train")
        train = self._look_at(train) if self._data.clean is None else self._cleaned(train, "train")
        train = self._named_labels(train)
        splitter = Splitter(self._data, self._meaning, self._recipe.seed, self._cache, self._ledger)
        train = splitter.apart_from(train, held)
        self._demand_labels(train)
        refuse_missing_parts(train, self._recipe)
        train = self._weighted(train)
        self._ledger.write()
        return visible(train, [*self._training_columns(), FAMILY])

    def _given_columns(self) -> list[str]:
        """Return the columns of training rows that are read, also those that members do not see."""
        split_column = self._data.split.column
        own = self._training_columns()
        return own if split_column is None or split_column in own else [*own, split_column]

    def _training_columns(self) -> list[str]:
        parts = part_columns(self._recipe)
        return list(dict.fromkeys([*self._columns, *self._recipe.base.columns, *parts]))

    def _collected(self) -> tuple[Dataset, Dataset | None, Dataset | None]:
        known = self._training_columns()
        if self._data.example:
            rows, seed = self._data.example, self._data.example.seed
            made = EXAMPLES[rows.kind]
            train = from_rows(made("train", rows.train_rows, seed), known, "train")
            test = from_rows(made("test", rows.test_rows, seed), self._columns, "test")
            return self._counted("train", train), None, self._counted("test", test)
        train = self._collect(self._data.train or [], self._given_columns(), "train")
        held = [
            self._collect(sources, self._columns, split) if sources else None
            for split, sources in (("validation", self._data.validation), ("test", self._data.test))
        ]
        return train, held[0], held[1]

    def _collect(self, sources: Sequence[Source], columns: Sequence[str], split: str) -> Dataset:
        said = self._data.annotate.annotators if self._data.annotate else None
        outcome = collect(
            sources,
            list(dict.fromkeys(columns)),
            split,
            labels=[*self._meaning.labels, *(said or [])],
            sets=self._meaning.may_be_empty,
            images=self._data.images,
        )
        if self._data.clean is None or self._data.clean.unreadable == "fail":
            refuse_unreadable(outcome.left, REMEDY if self._data.clean is None else "")
        self._ledger.take("collect", split, len(outcome.rows) + len(outcome.left), outcome)
        return outcome.rows

    def _counted(self, split: str, rows: Dataset) -> Dataset:
        self._ledger.take("collect", split, len(rows), Outcome(rows))
        return rows

    def _annotated(self, train: Dataset, annotate: AnnotateRecipe) -> Dataset:
        text, label = self._data.text, annotate.label
        if label not in train.column_names:
            raise RecipeError(f"data.annotate.label: no ensemble reads the column {label!r}")
        if annotate.unlabelled:
            pool = self._collect(annotate.unlabelled, [text, *(annotate.annotators or [])], "pool")
            asked = {"annotate": annotate.model_dump_json(), "teacher": teacher_identity(annotate)}
            outcome = self._cache.outcome(
                "annotate",
                asked,
                [pool],
                lambda: guessed_rows(pool, annotate, text, self._recipe.seed),
            )
            self._ledger.take("annotate", "pool", len(pool), outcome)
            train = with_rows(train, outcome.rows)
        if annotate.reviewed is not None:
            outcome = reviewed_rows(train, annotate.reviewed, text, label)
            train = self._ledger.take("review", "train", len(train), outcome)
        return train

    def _usable(self, rows: Dataset, split: str) -> Dataset:
        if self._data.clean is None or self._data.clean.missing == "fail":
            refuse_empty(rows, self._meaning.required, REMEDY if self._data.clean is None else "")
            return rows
        step, check = unusable(self._meaning, split)
        return self._step(step, split, rows, check)

    def _cleaned(self, rows: Dataset, split: str) -> Dataset:
        options = self._data.clean
        assert options is not None
        for step, check in checks(options, self._meaning, split, self._recipe.seed):
            rows = self._step(step, split, rows, check)
        return rows

    def _step(
        self, step: str, split: str, rows: Dataset, check: Callable[[Dataset], Outcome]
    ) -> Dataset:
        options = {"split": split, "clean": str(self._data.clean), "columns": str(self._meaning)}
        options["seed"] = str(self._recipe.seed)
        outcome = self._cache.outcome(step, options, [rows], lambda: check(rows))
        return self._ledger.take(step, split, len(rows), outcome)

    def _look_at(self, train: Dataset) -> Dataset:
        """Without cleaning: note what cleaning would remove, and return the rows as they are."""
        texts = self._meaning.inputs(train)
        answers = [train[name] for name in self._meaning.answers]
        found = {
            "repeat an earlier row": len(exact_duplicates(texts, answers, train[ORIGIN])),
            "contradict a row with the same text": len(
                {
                    row
                    for label in self._meaning.labels
                    for row in label_conflicts(texts, train[label])
                }
            ),
        }
        self._ledger.notes += [
            f"{count} of {len(train)} training rows {what}; `data.clean` would take them out"
            for what, count in found.items()
            if count
        ]
        return train

    def _demand_labels(self, train: Dataset) -> None:
        for ensemble in self._recipe.ensembles:
            if ensemble.task == "classification" and len(set(train[ensemble.answer])) < 2:
                raise RecipeError(
                    f"all {len(train)} training rows have the same {ensemble.answer}, {train[0][ensemble.answer]!r}; "
                    f"ensemble {ensemble.name!r} needs rows of at least two labels"
                )

    def _weighted(self, train: Dataset) -> Dataset:
        weights = [float(weight) for weight in train[WEIGHT]]
        if all(weight == 1 for weight in weights):
            return train
        drawn = train.select(repeated(weights, self._recipe.seed))
        self._ledger.counts.append(Count("train", "weights", len(train), len(drawn)))
        return drawn

    def _named_labels(self, train: Dataset) -> Dataset:
        """Keep the training rows whose labels the ensembles name. Raises RecipeError for a row with another label, if
        cleaning does not say that it leaves."""
        labels = {each.name: each.labels for each in self._recipe.ensembles}
        reasons = self._strange(train, labels, "the bundle has no label")
        if reasons and (self._data.clean is None or self._data.clean.unseen_labels == "fail"):
            first = min(reasons)
            raise RecipeError(
                f"{train[first][ORIGIN]}: {reasons[first]}{more_rows(list(reasons))}; with `data.clean.unseen_labels: "
                "quarantine` such rows are set aside and counted"
            )
        return self._ledger.take(
            "unseen_labels", "train", len(train), leave(train, reasons, "train", "unseen_labels")
        )

    def _strange(
        self, rows: Dataset, labels: Mapping[str, Sequence[str] | None], why: str
    ) -> dict[int, str]:
        """Return `why` and the label for each row whose label is not among its ensemble's `labels`, by index."""
        reasons: dict[int, str] = {}
        for ensemble in self._recipe.ensembles:
            known = labels[ensemble.name] or []
            for index, cell in enumerate(rows[ensemble.answer]):
                if stranger := unknown_label(ensemble.task, known, [cell]):
                    reasons[index] = f"{why} {stranger!r}"
        return reasons

    def _known_labels(self, train: Dataset, rows: Dataset, split: str) -> Dataset:
        """Keep the rows whose labels the recipe names or a training row has. Without cleaning, keep all: an unknown
        label stops the run later."""
        if self._data.clean is None or self._data.clean.unseen_labels == "fail":
            return rows
        labels = {
            each.name: each.labels or known_labels(each.task, train[each.answer])
            for each in self._recipe.ensembles
        }
        reasons = self._strange(rows, labels, "no training row has the label")
        outcome = leave(rows, reasons, split, "unseen_labels")
        if len(outcome.rows) == 0:
            raise RecipeError(
                f"none of the {len(rows)} {split} rows has a label of the training rows"
            )
        return self._ledger.take("unseen_labels", split, len(rows), outcome)

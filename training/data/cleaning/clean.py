"""The order of the checks, and which of them a recipe asks for."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

from datasets import Dataset

from serve.terminal.words import counted
from training.data.cleaning.cells import empty_cells, other_languages, wrong_length
from training.data.cleaning.duplicates import (
    exact_duplicates,
    label_conflicts,
    leaks,
    near_duplicates,
)
from training.data.cleaning.label_errors import suspected_label_errors
from training.data.cleaning.pictures import tiny_images
from training.data.steps import ORIGIN, Outcome, inputs_of, leave
from training.data.suspect import Suspect
from training.recipe.clean import CleanRecipe

Check = Callable[[Dataset], Outcome]


@dataclass(frozen=True)
class Columns:
    """The meanings of the columns."""

    text: str
    answers: Sequence[str]
    """Columns of labels and replies."""
    labels: Sequence[str] = ()
    """The answers that are one label of a fixed set."""
    pair: str | None = None
    """Column of the second text if inputs are pairs."""
    may_be_empty: Sequence[str] = ()
    """Answers that may be empty, such as the labels of a multilabel row."""
    images: bool = False
    """Whether the inputs are images."""

    @property
    def required(self) -> list[str]:
        """The columns in which no cell may be empty."""
        names = [self.text, *([self.pair] if self.pair else []), *self.answers]
        return [name for name in names if name not in self.may_be_empty]

    def inputs(self, rows: Dataset) -> list[str]:
        """Return the input of each row as one text."""
        return inputs_of(rows, [self.text, *([self.pair] if self.pair else [])])


def checks(
    options: CleanRecipe, columns: Columns, split: str, seed: int
) -> Iterator[tuple[str, Check]]:
    """Yield the checks of training and validation rows in their order: the name of each, and a function from rows to an
    outcome."""

    def check(step: str, reasons: Callable[[Dataset], dict[int, str]]) -> tuple[str, Check]:
        return step, lambda rows: leave(rows, reasons(rows), split, step)

    if not columns.images:
        yield check(
            "length",
            lambda rows: wrong_length(
                columns.inputs(rows), options.min_characters, options.max_characters
            ),
        )
    elif options.min_side > 1:
        yield check("tiny", lambda rows: tiny_images(columns.inputs(rows), options.min_side))
    if options.languages:
        yield check(
            "language",
            lambda rows: other_languages(
                columns.inputs(rows), options.languages, options.language_confidence
            ),
        )
    if options.conflicts != "keep":
        majority = options.conflicts == "majority"
        yield check(
            "conflicts",
            lambda rows: {
                row: reason
                for label in columns.labels
                for row, reason in label_conflicts(
                    columns.inputs(rows), rows[label], majority
                ).items()
            },
        )
    if options.duplicates != "keep":
        yield check(
            "duplicates",
            lambda rows: exact_duplicates(
                columns.inputs(rows), [rows[name] for name in columns.answers], rows[ORIGIN]
            ),
        )
    if options.duplicates == "near":
        yield check(
            "near_duplicates",
            lambda rows: near_duplicates(
                columns.inputs(rows),
                [rows[name] for name in columns.answers],
                rows[ORIGIN],
                options.similarity,
                columns.images,
            ),
        )
    if options.label_errors != "keep":
        quarantine = options.label_errors == "quarantine"
        for label in columns.labels:
            yield (
                "label_errors",
                partial(
                    label_errors,
                    columns=columns,
                    label=label,
                    split=split,
                    seed=seed,
                    quarantine=quarantine,
                ),
            )


def unusable(columns: Columns, split: str) -> tuple[str, Check]:
    """Return the check for rows without a text or an answer, which runs on every split."""
    return "missing", lambda rows: leave(
        rows, empty_cells(rows, columns.required), split, "missing"
    )


def label_errors(
    rows: Dataset, columns: Columns, label: str, split: str, seed: int, quarantine: bool
) -> Outcome:
    """Find labels that are likely wrong. They are the outcome's suspects, and leave if `quarantine` is true."""
    texts = columns.inputs(rows)
    doubts, note = suspected_label_errors(texts, rows[label], seed)
    reasons = {
        doubt.row: f"{label} {rows[doubt.row][label]!r} is likely wrong: {doubt.suggestion!r} is "
        f"{doubt.confidence:.2f} likely"
        for doubt in doubts
    }
    suspects = [
        Suspect(
            text=texts[doubt.row],
            suggestion=doubt.suggestion,
            confidence=doubt.confidence,
            reason="suspected label error",
            origin=rows[doubt.row][ORIGIN],
            given=rows[doubt.row][label],
        )
        for doubt in doubts
    ]
    if not quarantine:
        found = f"{counted(len(suspects), 'label')} of {label} likely wrong" + (
            f"; {note}" if note else ""
        )
        return Outcome(rows, suspects=suspects, note=found, kept=range(len(rows)))
    return replace(leave(rows, reasons, split, "label_errors"), suspects=suspects, note=note)


def leaked(
    rows: Dataset, others: Dataset, columns: Columns, split: str, similarity: float | None
) -> Outcome:
    """Remove the rows whose text is in `others`, the rows of the split that judges them."""
    given, known = columns.inputs(rows), columns.inputs(others)
    reasons = leaks(given, known, others[ORIGIN], similarity, columns.images)
    return leave(rows, reasons, split, "leakage")

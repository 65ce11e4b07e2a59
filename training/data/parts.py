"""The parts of the training rows that single members learn from: those of a team, a region or a month."""

from collections import Counter

from datasets import Dataset

from training.recipe import MemberRecipe, Recipe, RecipeError
from training.recipe.values import spelled

SHOWN = 8
"""How many values of a column a message names."""


def part_columns(recipe: Recipe) -> list[str]:
    """Return the columns by which members take their part of the rows."""
    parts = [member.rows for _, member in _members(recipe)]
    return list(dict.fromkeys(part.column for part in parts if part is not None))


def own_rows(rows: Dataset, member: MemberRecipe) -> Dataset:
    """Return the rows that `member` may learn from: all rows, or those with the values it names. Raises RecipeError if
    there are none."""
    if member.rows is None:
        return rows
    wanted, cells = set(member.rows.values), rows[member.rows.column]
    own = [row for row, cell in enumerate(cells) if spelled(cell) in wanted]
    if not own:
        raise RecipeError(
            f"member {member.name!r}: no row to train on has one of its values of {member.rows.column!r} "
            f"({', '.join(map(repr, member.rows.values))})"
        )
    return rows.select(own)


def refuse_missing_parts(train: Dataset, recipe: Recipe) -> None:
    """Check that some training row has each value that a member names. Raises RecipeError, which names the values that
    there are."""
    for ensemble, member in _members(recipe):
        if member.rows is None:
            continue
        found = Counter(map(spelled, train[member.rows.column]))
        missing = [value for value in member.rows.values if value not in found]
        if missing:
            known = ", ".join(f"{value!r} ({count})" for value, count in found.most_common(SHOWN))
            more = ", ..." if len(found) > SHOWN else ""
            raise RecipeError(
                f"member {ensemble}/{member.name}: no training row has the value {missing[0]!r} in the column "
                f"{member.rows.column!r}; its values are {known}{more}"
            )


def _members(recipe: Recipe) -> list[tuple[str, MemberRecipe]]:
    return [
        (ensemble.name, member)
        for ensemble in recipe.ensembles
        for member in [*ensemble.members, *ensemble.candidates]
    ]

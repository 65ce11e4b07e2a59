"""The names of bases that `choir bases` compares."""

from collections.abc import Sequence
from pathlib import Path

from serve.base.packages import PACKAGES
from serve.files import no_folder
from training.recipe.values import RecipeError


def check_candidates(names: Sequence[str]) -> None:
    """Check what can be told by the names alone. Raises RecipeError if one is named twice or can be no base."""
    if len(set(names)) != len(names):
        raise RecipeError("a candidate is named twice")
    for name in names:
        if not Path(name).is_dir() and name not in PACKAGES and "@" not in name:
            raise RecipeError(
                f"{no_folder(name, Path(name))} A candidate is a model folder, {', '.join(PACKAGES)}, or a hub id with "
                "its revision (org/name@revision)."
            )

"""What is asked of a retraining: which member of which bundle, by which recipe. It is checked before anything is
trained."""

import difflib
from dataclasses import dataclass
from pathlib import Path

from serve.bundle import Bundle
from serve.fusion.fitting.stored_scores import Question
from serve.manifest import Ensemble
from training.execution.changes import changes, listed
from training.execution.run import WORK, recorded_recipe, recorded_steps
from training.manifest import draft
from training.recipe import EnsembleRecipe, MemberRecipe, Recipe, RecipeError, load_recipe
from training.search import Found


@dataclass(frozen=True)
class Request:
    """A member to train, the bundle that it is for, and the recipe that says how."""

    recipe: Recipe
    """The whole recipe."""
    ensemble: EnsembleRecipe
    """The member's ensemble, with the labels of the bundle and with this member alone."""
    member: MemberRecipe
    """With the values that a search of the bundle's training found."""
    bundle: Bundle
    manifest: Ensemble
    """The highest version of the ensemble in the bundle."""
    began: Recipe
    """The recipe that the bundle was trained by."""

    @property
    def record(self) -> Path:
        """The folder of the record of the bundle's training."""
        return self.bundle.path / WORK

    @property
    def work(self) -> Path:
        """The folder of the retraining's own record."""
        return self.record / "retraining" / self.ensemble.name / self.member.name

    @property
    def alone(self) -> Recipe:
        """The recipe with this member alone."""
        return self.recipe.model_copy(update={"ensembles": [self.ensemble]})


def understood(recipe_path: Path, member: str, into: Path, ensemble: str | None) -> Request:
    """Check and return what is asked. Raises RecipeError and BundleError."""
    recipe = load_recipe(recipe_path)
    own, named = _found(recipe, recipe_path.name, member, ensemble)
    bundle, began = _finished(into, recipe_path, own.name)
    manifest = bundle.ensemble(own.name)
    if named.name not in [each.name for each in manifest.members]:
        names = ", ".join(each.name for each in manifest.members)
        raise RecipeError(
            f"{manifest.id} in {into} has no member {named.name!r}; its members are {names}. Train a new bundle to add "
            "one"
        )
    named = _with_found_values(named, own, bundle)
    own = own.model_copy(
        update={
            "members": [named],
            "candidates": [],
            "labels": manifest.labels,
            "search": None,
            "rivals": False,
            "merges": [],
        }
    )
    _same_base(recipe, began, recipe_path.name, into)
    _same_question(recipe, began, own, manifest, recipe_path.name)
    return Request(recipe, own, named, bundle, manifest, began)


def _found(
    recipe: Recipe, source: str, member: str, ensemble: str | None
) -> tuple[EnsembleRecipe, MemberRecipe]:
    """Find the member in the recipe."""
    known = [each.name for each in recipe.ensembles]
    if ensemble is not None and recipe.find(ensemble) is None:
        raise RecipeError(
            f"{source} has no ensemble {ensemble!r}{_hint(ensemble, known)}; it has {', '.join(known)}"
        )
    asked = [each for each in recipe.ensembles if ensemble in (None, each.name)]
    found = [(own, each) for own in asked for each in _members(own) if each.name == member]
    if not found:
        names = list(dict.fromkeys(each.name for own in asked for each in _members(own)))
        where = f"ensemble {ensemble!r} of {source}" if ensemble else source
        raise RecipeError(
            f"{where} has no member {member!r}{_hint(member, names)}; it has {', '.join(names)}"
        )
    if len(found) > 1:
        names = [own.name for own, _ in found]
        raise RecipeError(
            f"the ensembles {', '.join(names)} of {source} each have a member {member!r}; say which with --ensemble, "
            f"for example --ensemble {names[0]}"
        )
    return found[0]


def _members(ensemble: EnsembleRecipe) -> list[MemberRecipe]:
    """Return the members, and the one adapter that rivals them: `method: auto` may serve it alone."""
    return [*ensemble.members, *([ensemble.rival] if ensemble.rival else [])]


def _finished(into: Path, recipe: Path, ensemble: str) -> tuple[Bundle, Recipe]:
    """Open a bundle whose training has fused the ensemble."""
    if not into.is_dir():
        raise RecipeError(
            f"there is no folder {into}; --into names a bundle that `choir train` wrote"
        )
    began = recorded_recipe(into)
    finish = f"finish it first: choir train {recipe} --out {into} --resume"
    if began is None:
        bundle = Bundle.open(into)
        raise RecipeError(
            f"{bundle.path} has no record of its training ({WORK}), so its validation rows are not known; give the "
            "bundle as `choir train` left it"
        )
    if not (into / "bundle.json").is_file():
        raise RecipeError(f"{into} is not finished; {finish}")
    if began.find(ensemble) is None:
        names = ", ".join(each.name for each in began.ensembles)
        raise RecipeError(f"{into} was trained without the ensemble {ensemble!r}; it has {names}")
    if f"fusion {ensemble}" not in recorded_steps(into):
        raise RecipeError(
            f"{into} is not finished: the ensemble {ensemble!r} has not been fused; {finish}"
        )
    return Bundle.open(into), began


def _same_base(recipe: Recipe, began: Recipe, source: str, into: Path) -> None:
    found = [each for each in changes(began, recipe) if each.path[0] == "base"]
    if found:
        raise RecipeError(
            f"{source} has another base than {into}: {listed(found)}; a member fits only the base that it was trained "
            "on"
        )


def _same_question(
    recipe: Recipe, began: Recipe, own: EnsembleRecipe, manifest: Ensemble, source: str
) -> None:
    """Refuse a recipe by which the member would answer another question than the rest of its ensemble."""
    asked, served = (
        Question.of(draft(own, manifest.members, own.labels or [])),
        Question.of(manifest),
    )
    other = [key for key in Question.model_fields if getattr(asked, key) != getattr(served, key)]
    written = recipe.find(own.name)
    if written and written.labels and written.labels != manifest.labels:
        other.append("labels")
    for key in ("text_pair", "image"):
        if getattr(recipe.data, key) != getattr(began.data, key):
            other.append(f"data.{key}")
    if other:
        raise RecipeError(
            f"{source}: {', '.join(other)} of {own.name!r} differ{'s' if len(other) == 1 else ''} from what "
            f"{manifest.id} was trained with, and all its members must read and answer alike; train a new bundle"
        )


def _with_found_values(member: MemberRecipe, own: EnsembleRecipe, bundle: Bundle) -> MemberRecipe:
    """Give the member the values that the bundle's search found, if it has a search."""
    if member.search is None and own.search is None:
        return member
    title = own.name if own.search else f"{own.name}/{member.name}"
    found = recorded_steps(bundle.path).get(f"search {title}")
    if found is None:
        raise RecipeError(
            f"member {member.name!r} has a search that the training of {bundle.path} did not run; write the values "
            "into the recipe"
        )
    return member.with_values(Found.model_validate(found).values).model_copy(
        update={"search": None}
    )


def _hint(given: str, known: list[str]) -> str:
    close = difflib.get_close_matches(given, known, n=1)
    return f" (did you mean {close[0]}?)" if close else ""

"""The record of a training run, in its bundle. It lists the finished steps, which `--resume` skips."""

import json
import shutil
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from pydantic import ValidationError

from serve.files import write_atomically
from serve.manifest import explain
from training.execution.changes import Progress, changes, listed
from training.progress import Watch
from training.recipe import Recipe, RecipeError
from training.recipe.values import EventLog
from training.stages.curve import read_curve
from training.stages.fit import Precision, Stage

WORK = ".choir-train"
"""Folder in the bundle for the run's record, checkpoints and data cache. Serving never reads it."""


class Run:
    """The finished steps of a run, written to disk after each step. Several threads may finish steps."""

    def __init__(
        self,
        folder: Path,
        steps: dict[str, Any],
        watch: Watch,
        report_to: Sequence[EventLog] = (),
    ) -> None:
        """`report_to` are the event logs that stages write."""
        self.folder = folder.absolute()
        self._report_to = report_to
        self.watch = watch
        self.models = threading.Lock()
        """Held while this process loads and runs a model: transformers patches torch while it loads one."""
        self._writing = threading.Lock()
        self._steps = steps

    @classmethod
    def start(cls, out: Path, recipe: Recipe, watch: Watch, *, resume: bool) -> Self:
        """Begin in an empty `out`, or with `resume` continue a stopped run.

        The recipe may differ from the one that the run was begun with in keys on which nothing depends that is trained
        or fitted. Raises RecipeError."""
        folder = out / WORK
        if out.exists() and not out.is_dir():
            raise RecipeError(f"{out} is a file; --out names a folder")
        if not out.is_dir() or not any(out.iterdir()) or _only_begun(out):
            return cls.begin(folder, recipe, watch)
        if not resume:
            raise RecipeError(
                f"{out} is not empty; give another --out, or --resume to continue a run that stopped"
            )
        return cls.resumed(folder, recipe, watch, f"{out}", "give another --out")

    @classmethod
    def begin(cls, folder: Path, recipe: Recipe, watch: Watch) -> Self:
        """Begin a run whose record is in `folder`. Raises RecipeError."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RecipeError(f"cannot write to {folder.parent}: {error.strerror}") from None
        run = cls(folder, {}, watch, recipe.report_to)
        run._write_recipe(recipe)
        run._write()
        return run

    @classmethod
    def resumed(cls, folder: Path, recipe: Recipe, watch: Watch, what: str, instead: str) -> Self:
        """Continue the run whose record is in `folder`. A refusal calls it `what`, and names `instead` as the way out.

        Raises RecipeError."""
        try:
            steps = json.loads((folder / "state.json").read_text(encoding="utf-8"))["steps"]
        except (OSError, ValueError):
            raise RecipeError(f"{what} holds no training run to resume; {instead}") from None
        before = _recipe_of(folder)
        if before is None:
            raise RecipeError(f"{what} holds no training run to resume; {instead}")
        run = cls(folder, steps, watch, recipe.report_to)
        progress = Progress(steps, run._begun())
        found = [each for each in changes(before, recipe) if progress.depends_on(each)]
        if found:
            raise RecipeError(
                f"{what} was begun with another recipe: {listed(found)}; {instead}, or resume with that recipe"
            )
        run._write_recipe(recipe)
        return run

    def _begun(self) -> frozenset[tuple[str, str]]:
        """Return ensemble and member of what has checkpoints, and the ensembles with unfinished trials."""
        stages = (self.folder / "checkpoints").glob("*/*")
        searches = (self.folder / "search").glob("*")
        return frozenset(
            [
                *((path.parent.name, path.name) for path in stages),
                *((path.name, "") for path in searches),
            ]
        )

    def result(self, step: str) -> Any | None:
        """Return the result of a finished step; None if the step is not finished."""
        return self._steps.get(step)

    def results(self, prefix: str) -> list[Any]:
        """Return the results of the finished steps whose names start with `prefix`, in the order of finishing."""
        with self._writing:
            return [result for step, result in self._steps.items() if step.startswith(prefix)]

    @contextmanager
    def stage(self, title: str, precision: Precision) -> Iterator[Stage]:
        """Provide a stage with a folder for checkpoints and a row of progress. After success, record its learning curve
        and delete the folder."""
        # Each part of the title is a folder: a name may contain any character that could join the parts.
        folder = self.folder / "checkpoints" / title
        events = self.folder / "events" / title
        yield Stage(title, folder, precision, self.watch, self._report_to, events)
        self.watch.end(title)
        if (curve := read_curve(folder)) is not None:
            self.finish(f"curve {title}", curve)
        shutil.rmtree(folder, ignore_errors=True)

    def finish(self, step: str, result: Any) -> None:
        """Record a step as finished. `result` must be JSON and not None."""
        with self._writing:
            self._steps[step] = result
            self._write()

    def _write(self) -> None:
        content = {"format": 1, "steps": self._steps}
        write_atomically(self.folder / "state.json", json.dumps(content, indent=2) + "\n")

    def _write_recipe(self, recipe: Recipe) -> None:
        write_atomically(self.folder / "recipe.json", recipe.model_dump_json(indent=2) + "\n")


def _only_begun(out: Path) -> bool:
    """Whether an earlier run stopped before it made anything, for example because it could not read the data."""
    state = out / WORK / "state.json"
    checkpoints = out / WORK / "checkpoints"
    if [path.name for path in out.iterdir()] != [WORK] or checkpoints.exists():
        return False
    return state.is_file() and not json.loads(state.read_text(encoding="utf-8"))["steps"]


def recorded_steps(bundle: Path) -> Mapping[str, Any]:
    """Return the results of the finished steps of the run that made a bundle; none if the bundle has no record."""
    file = bundle / WORK / "state.json"
    if not file.is_file():
        return {}
    steps: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))["steps"]
    return steps


def recorded_data(bundle: Path) -> str | None:
    """Return the digest of the splits that a bundle was trained on; None if the bundle has no record of its run."""
    return recorded_steps(bundle).get("data")


def recorded_recipe(bundle: Path) -> Recipe | None:
    """Return the recipe that made a bundle; None if the bundle has no record of its run. Raises RecipeError if another
    version of Choir wrote it, with keys that this one does not know."""
    return _recipe_of(bundle / WORK)


def _recipe_of(folder: Path) -> Recipe | None:
    file = folder / "recipe.json"
    if not file.is_file():
        return None
    try:
        return Recipe.model_validate_json(file.read_bytes())
    except ValidationError as error:
        raise RecipeError(
            f"{file} cannot be read by this version of Choir: {explain(error)}; use the version that wrote it"
        ) from None

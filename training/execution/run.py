"""The record of a training run, in its bundle. It lists the finished steps, which `--resume` skips."""

import json
import shutil
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from serve.files import write_atomically
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
        fingerprint: str,
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
        self._fingerprint = fingerprint
        self._steps = steps

    @classmethod
    def start(cls, out: Path, recipe: Recipe, watch: Watch, *, resume: bool) -> Self:
        """Begin in an empty `out`, or with `resume` continue a stopped run of the same recipe. Raises RecipeError."""
        folder = out / WORK
        if out.exists() and not out.is_dir():
            raise RecipeError(f"{out} is a file; --out names a folder")
        if not out.is_dir() or not any(out.iterdir()) or _only_begun(out):
            return cls._begin(folder, recipe, watch)
        if not resume:
            raise RecipeError(
                f"{out} is not empty; give another --out, or --resume to continue a run that stopped"
            )
        try:
            state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            raise RecipeError(
                f"{out} holds no training run to resume; give another --out"
            ) from None
        if state["recipe"] != recipe.fingerprint:
            raise RecipeError(
                f"{out} was begun with another recipe; give another --out, or resume with that recipe"
            )
        return cls(folder, recipe.fingerprint, state["steps"], watch, recipe.report_to)

    @classmethod
    def _begin(cls, folder: Path, recipe: Recipe, watch: Watch) -> Self:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RecipeError(f"cannot write to {folder.parent}: {error.strerror}") from None
        content = recipe.model_dump_json(indent=2) + "\n"
        write_atomically(folder / "recipe.json", content)
        run = cls(folder, recipe.fingerprint, {}, watch, recipe.report_to)
        run._write()
        return run

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
        file = self.folder / "state.json"
        content = {"format": 1, "recipe": self._fingerprint, "steps": self._steps}
        write_atomically(file, json.dumps(content, indent=2) + "\n")


def _only_begun(out: Path) -> bool:
    """Whether an earlier run stopped before it made anything, for example because it could not read the data."""
    state = out / WORK / "state.json"
    checkpoints = out / WORK / "checkpoints"
    if [path.name for path in out.iterdir()] != [WORK] or checkpoints.exists():
        return False
    return state.is_file() and not json.loads(state.read_text(encoding="utf-8"))["steps"]


def recorded_data(bundle: Path) -> str | None:
    """Return the digest of the splits that a bundle was trained on; None if the bundle has no record of its run."""
    file = bundle / WORK / "state.json"
    if not file.is_file():
        return None
    digest: str | None = json.loads(file.read_text(encoding="utf-8"))["steps"].get("data")
    return digest


def recorded_recipe(bundle: Path) -> Recipe | None:
    """Return the recipe that made a bundle; None if the bundle has no record of its run."""
    file = bundle / WORK / "recipe.json"
    if not file.is_file():
        return None
    return Recipe.model_validate_json(file.read_bytes())

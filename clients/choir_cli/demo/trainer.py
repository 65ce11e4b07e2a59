"""Trains the demo's bundle in a process of its own, and says when it can be served."""

import shutil
import subprocess
import sys
import time
from pathlib import Path

from choir_client import ChoirError

MEMBERS_AT_ONCE = "2"
LOOK_EVERY = 0.5
"""Seconds between two looks at what the training has written."""


class Trainer:
    """A run of `choir train`, which is another process, so that its memory is free before the last requests.

    A run of the same recipe that was finished is used again, and one that was interrupted goes on."""

    def __init__(self, recipe: Path, bundle: Path) -> None:
        self._recipe = recipe
        self._bundle = bundle
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start to train. What an earlier version of the example has left is removed."""
        resume = same_recipe(self._recipe, self._bundle)
        if not resume:
            shutil.rmtree(self._bundle, ignore_errors=True)
            self._bundle.parent.mkdir(exist_ok=True)
        # The demo's own server will say what a request costs.
        command = ("train", str(self._recipe), "--out", str(self._bundle), "--no-timing")
        flags = ("--parallel", MEMBERS_AT_ONCE, *(("--resume",) if resume else ()))
        self._process = subprocess.Popen([sys.executable, "-m", "choir_cli.main", *command, *flags])

    def wait_until_servable(self) -> None:
        """Wait until the manifests of all ensembles are written; figures on the test rows may follow. Raises ChoirError
        if the training fails before."""
        from training.recipe import load_recipe

        names = [ensemble.name for ensemble in load_recipe(self._recipe).ensembles]
        while not all((self._bundle / "ensembles" / name / "1.json").is_file() for name in names):
            if self._ended():
                return
            time.sleep(LOOK_EVERY)

    def wait(self) -> None:
        """Wait until the training has ended. Raises ChoirError if it failed."""
        assert self._process is not None
        self._process.wait()
        self._ended()

    def stop(self) -> None:
        """Stop the training if it runs; the next run goes on with it."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            self._process.wait()

    def _ended(self) -> bool:
        assert self._process is not None
        status = self._process.poll()
        if status:
            raise ChoirError(
                f"training failed; the reason is printed above. To begin anew, remove {self._bundle}."
            )
        return status == 0


def same_recipe(recipe: Path, bundle: Path) -> bool:
    """Return whether the bundle's run was begun with this recipe."""
    if not bundle.is_dir():
        return False  # the imports take seconds, and the first training starts without them
    from training.execution.run import recorded_recipe
    from training.recipe import RecipeError, load_recipe

    try:
        return recorded_recipe(bundle) == load_recipe(recipe)
    except RecipeError:  # another version wrote it
        return False

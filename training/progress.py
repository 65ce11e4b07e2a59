"""How training reports its progress. Each piece of work has a title, and reports go to a Watch."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import datasets
import transformers
from transformers import TrainerCallback

Advance = Callable[[int], None]
"""Reports how many more units of a piece of work are done."""


class Watch(Protocol):
    """Receives reports of progress. It ignores reports on a title that was never begun."""

    def begin(self, title: str, total: int, done: int = 0) -> None:
        """A piece of work of `total` steps starts or restarts, with `done` steps finished already."""

    def reach(self, title: str, done: int, loss: float | None = None) -> None:
        """`done` steps are finished. Without a `loss`, the last reported loss stays."""

    def end(self, title: str) -> None:
        """The piece of work is finished."""


class Unwatched:
    """A Watch that ignores all reports."""

    def begin(self, title: str, total: int, done: int = 0) -> None:
        return None

    def reach(self, title: str, done: int, loss: float | None = None) -> None:
        return None

    def end(self, title: str) -> None:
        return None


def quiet_libraries() -> None:
    """Turn off the progress bars and warnings of transformers and datasets."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()


class StageProgress(TrainerCallback):
    """Reports the Trainer's steps and losses to a Watch."""

    def __init__(self, watch: Watch, title: str) -> None:
        self._watch = watch
        self._title = title

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._watch.begin(self._title, state.max_steps, state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._watch.reach(self._title, state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if logs and "loss" in logs:
            self._watch.reach(self._title, state.global_step, float(logs["loss"]))


@contextmanager
def counted(watch: Watch, title: str, total: int) -> Iterator[Advance]:
    """Report a piece of work of `total` units to `watch`; yields the function that counts finished units."""
    done = 0

    def advance(amount: int) -> None:
        nonlocal done
        done += amount
        watch.reach(title, done)

    watch.begin(title, total)
    yield advance
    watch.end(title)

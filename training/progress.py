"""How work tells how far it has come: whoever watches knows each piece of it by its title."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import datasets
import transformers
from transformers import TrainerCallback

Advance = Callable[[int], None]


class Watch(Protocol):
    """Whoever shows how far the work has come. Reports on a title that was never begun are ignored."""

    def begin(self, title: str, total: int, done: int = 0) -> None:
        """A piece of work starts, or starts anew."""

    def reach(self, title: str, done: int, loss: float | None = None) -> None:
        """It has come so far; without a `loss`, the last one stands."""

    def end(self, title: str) -> None:
        """It is finished."""


class Unwatched:
    """A Watch for work that nobody looks at."""

    def begin(self, title: str, total: int, done: int = 0) -> None:
        return None

    def reach(self, title: str, done: int, loss: float | None = None) -> None:
        return None

    def end(self, title: str) -> None:
        return None


def quiet_libraries() -> None:
    """Leave the terminal to Choir's own bars: no bars and no advice from transformers and datasets."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()


class StageProgress(TrainerCallback):
    """Reports the Trainer's steps and the last loss."""

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
    """A piece of work that hears of its progress in amounts."""
    done = 0

    def advance(amount: int) -> None:
        nonlocal done
        done += amount
        watch.reach(title, done)

    watch.begin(title, total)
    yield advance
    watch.end(title)

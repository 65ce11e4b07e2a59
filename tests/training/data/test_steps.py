from pathlib import Path

from datasets import Dataset

from training.data.steps import ORIGIN, Outcome, StepCache, leave
from training.data.suspect import Suspect

ROWS = Dataset.from_dict({"text": ["a", "b", "c"], ORIGIN: ["f:1", "f:2", "f:3"]})


class Step:
    """Counts how often the step is computed."""

    def __init__(self, outcome: Outcome) -> None:
        self.outcome, self.done = outcome, 0

    def __call__(self) -> Outcome:
        self.done += 1
        return self.outcome


def test_a_step_is_done_once_for_the_same_content_and_options(tmp_path: Path) -> None:
    step = Step(leave(ROWS, {1: "why not"}, "train", "check"))
    for _ in range(2):
        found = StepCache(tmp_path).outcome("check", {"limit": 1}, [ROWS], step)
        assert found.rows.to_list() == [ROWS[0], ROWS[2]]
        [left] = found.left
        assert (left.origin, left.reason, left.row) == ("f:2", "why not", {"text": "b"})
    assert step.done == 1
    StepCache(tmp_path).outcome("check", {"limit": 2}, [ROWS], step)
    other = Dataset.from_dict({"text": ["a", "b", "d"], ORIGIN: ["f:1", "f:2", "f:3"]})
    StepCache(tmp_path).outcome("check", {"limit": 1}, [other], step)
    assert step.done == 3


def test_rows_that_a_step_made_are_kept_too(tmp_path: Path) -> None:
    made = Dataset.from_dict({"text": ["new"], "label": ["x"]})
    suspects = [Suspect("b", "y", 0.5, "guessed", "f:2")]
    step = Step(Outcome(made, suspects=suspects, note="one"))
    for _ in range(2):
        found = StepCache(tmp_path).outcome("annotate", {}, [ROWS], step)
        assert found.rows.to_list() == [{"text": "new", "label": "x"}]
        assert (list(found.suspects), found.note) == (suspects, "one")
    assert step.done == 1


def test_a_step_that_was_interrupted_is_done_again(tmp_path: Path) -> None:
    cache, step = StepCache(tmp_path), Step(leave(ROWS, {}, "train", "check"))
    cache.outcome("check", {}, [ROWS], step)
    next(tmp_path.glob("check-*/outcome.json")).unlink()
    assert len(cache.outcome("check", {}, [ROWS], step).rows) == 3
    assert step.done == 2

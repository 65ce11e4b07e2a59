"""How Ray Tune's results are read, and which values it draws."""

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow
import pytest
import torch
from ray import tune as ray_tune

from training.parallel.trials import REASON, _domain, _reason, _trial, _try
from training.recipe import RangeRecipe


class Scoring:
    """A study whose trials return a score or raise an error."""

    metric = "log_loss"

    def __init__(self, outcome: float | Exception) -> None:
        self._outcome = outcome
        self.asked: list[dict[str, Any]] = []

    def score(self, values: dict[str, Any], *_: Any) -> float:
        self.asked.append(values)
        if isinstance(self._outcome, Exception):
            raise self._outcome
        return self._outcome


@pytest.fixture
def reported(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    monkeypatch.setattr(ray_tune, "report", found.append)
    return found


def tried(study: Scoring, values: dict[str, Any], folder: Path) -> None:
    empty = pyarrow.table({"text": pyarrow.array([], pyarrow.string())})
    _try(values, study, empty, empty, None, torch.get_num_threads(), folder)  # type: ignore[arg-type]


def result(error: Exception | None = None, **metrics: Any) -> Any:
    return SimpleNamespace(error=error, metrics=metrics, config={"rank": np.int64(4)})


def test_a_trial_is_not_done_twice(tmp_path: Path, reported: list[dict[str, Any]]) -> None:
    study = Scoring(0.25)
    for rank in (4, np.int64(4)):
        tried(study, {"rank": rank}, tmp_path)
    assert study.asked == [{"rank": 4}]
    assert reported == [{"log_loss": 0.25}] * 2


def test_a_trial_that_an_error_ends_fails_without_looking_like_a_dead_process(
    tmp_path: Path, reported: list[dict[str, Any]]
) -> None:
    tried(Scoring(ValueError("the rank\nis too high")), {"rank": 4}, tmp_path)
    [said] = reported
    assert math.isnan(said["log_loss"])
    assert said[REASON] == "is too high"
    # A resumed run tries a failed trial again.
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("found", "score"),
    [
        (result(log_loss=0.25), 0.25),
        (result(log_loss=math.nan, **{REASON: "why"}), None),
        (result(log_loss=math.inf), None),
        (result(accuracy=1.0), None),
        (result(RuntimeError("died"), log_loss=0.25), None),
        (SimpleNamespace(error=RuntimeError("died"), metrics=None, config={"rank": 4}), None),
    ],
)
def test_a_trial_has_a_score_only_where_it_came_to_one(found: Any, score: float | None) -> None:
    trial = _trial(found, "log_loss")
    assert trial.score == score
    assert json.loads(trial.model_dump_json()) == {"values": {"rank": 4}, "score": score}


@pytest.mark.parametrize(
    ("results", "reason"),
    [
        ([result(log_loss=math.nan)], "their figures are not finite numbers"),
        ([result(RuntimeError("it\ndied "))], "died"),
        ([result(RuntimeError())], "RuntimeError"),
        ([result(RuntimeError(" \n"))], "RuntimeError"),
        ([result(log_loss=math.nan), result(log_loss=math.nan, **{REASON: "why"})], "why"),
    ],
)
def test_the_reason_is_from_the_first_trial_that_has_one(results: list[Any], reason: str) -> None:
    assert _reason(results) == reason


def test_the_reason_is_that_of_the_trial_and_not_rays() -> None:
    error = RuntimeError("ray::ImplicitFunc.train() ...")
    error.cause = ValueError("the rank is too high")  # type: ignore[attr-defined]
    assert _reason([result(error)]) == "the rank is too high"


def test_what_is_drawn_is_in_the_range_that_was_given() -> None:
    def drawn(content: Any) -> list[Any]:
        domain = _domain(RangeRecipe.model_validate(content))
        return [domain.sample() for _ in range(300)]

    assert set(drawn({"integer": [2, 4]})) == {2, 3, 4}
    assert set(drawn(["all", True, 0.5])) == {"all", True, 0.5}
    uniform = drawn({"uniform": [0.25, 0.75]})
    assert all(0.25 <= value <= 0.75 for value in uniform)
    assert min(uniform) < 0.35
    assert max(uniform) > 0.65
    small = sum(value < 1e-2 for value in drawn({"log": [1e-4, 1.0]}))
    # Half of the range of logarithms; with even draws of the values, it would be one in a hundred.
    assert 100 < small < 200

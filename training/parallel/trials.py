"""The trials of a search, run by Ray Tune."""

import hashlib
import json
import logging
import math
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
from datasets import Dataset
from ray import tune as ray_tune
from ray.tune.search import ConcurrencyLimiter
from ray.tune.search.basic_variant import BasicVariantGenerator
from ray.util.queue import Queue

from serve.errors import last_line
from serve.files import write_atomically
from training.parallel.progress_queue import ProgressQueue, ProgressSender
from training.parallel.workers import RETRIES, Share, become_trainer
from training.progress import Watch
from training.recipe import RangeRecipe, RecipeError, Values
from training.search import Found, SearchTrial, Study

_OPTIONS = {
    # On Ctrl-C, Tune would end the search alone, and the run would continue.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # Tune's newer output always prints a frame.
    "RAY_AIR_NEW_OUTPUT": "0",
}
BATCH = 4
"""How many trials `tpe` runs before it learns from them, if nothing else limits their number."""
REASON = "reason"
"""The key under which a failed trial reports its error."""


def tune(study: Study, rows: Dataset, folder: Path, watch: Watch, at_once: int | None) -> Found:
    """Run all trials of the study and return the best values. Raises RecipeError if every trial failed.

    The same seed draws the same trials; with `tpe`, only if `at_once` is the same too, because each batch learns from
    the batches before it. The score of each trial is kept in `folder`, which every machine must see. A search that was
    stopped draws the same trials again and trains only those without a score.
    """
    train, judge = study.parts(rows)
    share, search = Share.of_cluster(at_once), study.search
    os.environ.update(_OPTIONS)
    # Tune would log every failed trial; Choir reports a failure only if all trials failed.
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    folder.mkdir(parents=True, exist_ok=True)
    with (
        ProgressQueue(watch) as progress_queue,
        tempfile.TemporaryDirectory(prefix="tune-", dir=folder) as tunes_own,
    ):
        tuner = ray_tune.Tuner(
            ray_tune.with_resources(
                ray_tune.with_parameters(
                    _try,
                    study=study,
                    train=train.with_format("arrow")[:],
                    judge=judge.with_format("arrow")[:],
                    queue=progress_queue.queue,
                    threads=share.cpus,
                    kept=folder,
                ),
                {"cpu": share.cpus, "gpu": share.gpus},
            ),
            param_space={key: _domain(tried) for key, tried in search.space.items()},
            tune_config=ray_tune.TuneConfig(
                metric=study.metric,
                mode="min" if study.lower_is_better else "max",
                num_samples=search.trials,
                search_alg=_searcher(study, at_once),
            ),
            run_config=ray_tune.RunConfig(
                name=study.title.replace("/", "-"),
                storage_path=tunes_own,
                failure_config=ray_tune.FailureConfig(max_failures=RETRIES),
                verbose=0,
            ),
        )
        results = list(tuner.fit())
        progress_queue.catch_up()
    trials = [_trial(result, study.metric) for result in results]
    right = [trial for trial in trials if trial.score is not None]
    if not right:
        raise RecipeError(f"search {study.title}: no trial succeeded: {_reason(results)}")
    sign = 1 if study.lower_is_better else -1
    best = min(right, key=lambda trial: sign * (trial.score or 0.0))
    return Found(
        title=study.title,
        values=best.values,
        metric=study.metric,
        score=best.score or 0.0,
        rows=len(judge),
        method=search.method,
        trials=trials,
    )


def _try(
    values: Values,
    study: Study,
    train: pyarrow.Table,
    judge: pyarrow.Table,
    queue: Queue,
    threads: int,
    kept: Path,
) -> None:
    become_trainer(threads)
    trial = _plain(values)
    record = kept / f"{hashlib.sha256(json.dumps(trial, sort_keys=True).encode()).hexdigest()}.json"
    if not record.is_file():
        try:
            score = study.score(trial, Dataset(train), Dataset(judge), ProgressSender(queue))
        except Exception as error:
            # If it were raised, Tune would take it for a process that died, and try again.
            ray_tune.report({study.metric: math.nan, REASON: last_line(error)})
            return
        write_atomically(record, json.dumps(score))
    ray_tune.report({study.metric: json.loads(record.read_text(encoding="utf-8"))})


def _domain(tried: RangeRecipe) -> Any:
    if tried.log:
        return ray_tune.loguniform(*tried.log)
    if tried.uniform:
        return ray_tune.uniform(*tried.uniform)
    if tried.integer:
        low, high = tried.integer
        return ray_tune.randint(low, high + 1)
    return ray_tune.choice(tried.values)


def _searcher(study: Study, at_once: int | None) -> Any:
    if study.search.method == "random":
        return BasicVariantGenerator(max_concurrent=at_once or 0, random_state=study.recipe.seed)
    import optuna
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return ConcurrencyLimiter(
        OptunaSearch(seed=study.recipe.seed), max_concurrent=at_once or BATCH, batch=True
    )


def _trial(result: Any, metric: str) -> SearchTrial:
    score = (result.metrics or {}).get(metric)
    if result.error is not None or score is None or not math.isfinite(score):
        score = None
    return SearchTrial(values=_plain(result.config), score=score)


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values as Python's own types, which JSON can hold."""
    return {
        key: value.item() if isinstance(value, np.generic) else value
        for key, value in values.items()
    }


def _reason(results: list[Any]) -> str:
    """Return the first reason that a failed trial gave."""
    for result in results:
        if result.error is not None:
            return last_line(getattr(result.error, "cause", result.error))
        if said := (result.metrics or {}).get(REASON):
            return str(said)
    return "their figures are not finite numbers"

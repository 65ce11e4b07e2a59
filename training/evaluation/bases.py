"""Compares candidate bases on a small budget (`choir bases`), by the accuracy of a linear probe on their vectors."""

import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from transformers import AutoModel

from serve.base.architectures import unserved_base
from serve.base.folder import BaseError, BaseKind, Pooling, kind_of, read_config
from serve.base.positions import longest_text
from serve.base.side_files import read_pooling, read_tokenizer
from serve.base.two_towers import towers_of
from serve.bundle import BaseSpec, Bundle
from serve.manifest import Ensemble, FusionSpec, Member
from serve.terminal.sheet import Column, Sheet, number, whole
from serve.terminal.words import counted
from training.data.cleaning.families import families
from training.data.cleaning.label_errors import texts_by_label
from training.data.splits import fold_plan
from training.evaluation.candidates import check_candidates
from training.evaluation.metrics.resampling import Comparison, mean_over_rows
from training.evaluation.probe_rows import ProbeRows
from training.offline.members import OfflineMembers
from training.recipe import RecipeError
from training.stages.base import named_base
from training.stages.encoder import pool
from training.stages.fit import pad_tokens, padding_mask

FOLDS = 5
ROWS = 600
"""Rows for the probe, spread evenly over the labels."""
ZERO_SHOT_ROWS = 100
"""Rows for the zero-shot accuracy of a causal base, which scores every label after every text."""
MAX_TOKENS = 128
BATCH = 32


class BaseTrial(BaseModel):
    """The figures of one candidate."""

    model_config = ConfigDict(frozen=True)

    name: str
    kind: BaseKind
    parameters: int
    tokens_per_second: float
    """Speed of forward passes in float32 on this machine."""
    probe: float
    """Accuracy of a cross-validated logistic regression on the pooled vectors: the mean, or what an encoder's
    `1_Pooling/config.json` says."""
    probe_interval: tuple[float, float]
    zero_shot: float
    """Accuracy without training. The answer is the likeliest label after the text (causal), or the label whose name has
    the closest vector (encoder)."""


class Choice(BaseModel):
    """The comparison of all candidates, and the recommended one."""

    model_config = ConfigDict(frozen=True)

    rows: int
    labels: int
    left_out: int
    """Rows of labels with fewer than 5 texts."""
    note: str = ""
    """What was changed when the rows were read."""
    majority: float
    """Accuracy of always answering the most frequent label."""
    trials: list[BaseTrial]
    recommended: str
    reason: str


@dataclass(frozen=True)
class _Sample:
    texts: Sequence[str]
    truth: NDArray[np.int64]
    labels: Sequence[str]
    left_out: int
    note: str


def compare_bases(candidates: Sequence[str], found: ProbeRows, rows: int = ROWS) -> Choice:
    """Try each candidate (a model folder, a package of PACKAGES, or a hub id with `@revision`) on the same rows.

    It recommends the smallest base whose probe is not significantly worse than the best one. Raises RecipeError if the
    data or a candidate cannot be used.
    """
    check_candidates(candidates)
    located = [(name, *_locate(name)) for name in candidates]
    sample = _sample(found, rows)
    template = found.template
    trials, right = [], []
    for name, folder, kind in located:
        trial, answers = _try(name, folder, kind, sample, template)
        trials.append(trial)
        right.append(answers == sample.truth)
    compared = Comparison([{"probe": mean_over_rows(one)} for one in right], len(sample.truth))
    trials = [
        trial.model_copy(update={"probe_interval": _ends(compared, number)})
        for number, trial in enumerate(trials)
    ]
    best = max(range(len(trials)), key=lambda number: trials[number].probe)
    equals = [
        n for n in range(len(trials)) if n == best or compared.gap("probe", best, [n]).low <= 0
    ]
    chosen = min(equals, key=lambda number: trials[number].parameters)
    return Choice(
        rows=len(sample.truth),
        labels=len(sample.labels),
        left_out=sample.left_out,
        note=sample.note,
        majority=float(np.bincount(sample.truth).max() / len(sample.truth)),
        trials=trials,
        recommended=trials[chosen].name,
        reason=(
            "the best probe"
            if chosen == best
            else f"smaller than {trials[best].name}, whose probe is not significantly better"
        ),
    )


def table(choice: Choice) -> Sheet:
    """Return a table of the candidates, in which the recommended one has a star."""
    rows = f"{counted(choice.rows, 'row')} of {counted(choice.labels, 'label')}"
    title = f"{counted(len(choice.trials), 'base')} on {rows}"
    figures = ("parameters", "tokens/s", "linear probe", "zero-shot")
    shown = Sheet(title, [Column("base"), whole("kind"), *map(number, figures)])
    for trial in choice.trials:
        low, high = trial.probe_interval
        taken = trial.name == choice.recommended
        shown.add_row(
            f"{trial.name} *" if taken else trial.name,
            trial.kind,
            f"{trial.parameters / 1e6:,.1f} M",
            f"{trial.tokens_per_second:,.0f}",
            f"{trial.probe:.3f} [{low:.3f}, {high:.3f}]",
            f"{trial.zero_shot:.3f}",
            marked=taken,
        )
    return shown


def _locate(name: str) -> tuple[Path, BaseKind]:
    try:
        folder = named_base(name)
        config = read_config(folder)
        kind = kind_of(config)
    except BaseError as error:
        raise RecipeError(str(error)) from None
    if (reason := unserved_base(config, kind)) is not None:
        raise RecipeError(f"{name}: {reason}")
    if towers_of(config) is not None:
        raise RecipeError(f"{name}: it reads images too, and bases are compared on texts alone")
    try:
        read_pooling(folder)
    except BaseError as error:
        raise RecipeError(f"{name}: {error}") from None
    return folder, kind


def _sample(found: ProbeRows, rows: int) -> _Sample:
    groups: dict[str, list[int]] = defaultdict(list)
    for index, name in enumerate(found.labels):
        groups[name].append(index)
    several = texts_by_label(found.texts, found.labels)
    labels = sorted(name for name in groups if several[name] >= FOLDS)
    if len(labels) < 2:
        raise RecipeError(
            f"{found.source}: a comparison needs at least two labels of at least {FOLDS} texts each; column "
            f"{found.column!r} has {len(groups)} labels, {len(labels)} of them with that many"
        )
    random = np.random.default_rng(0)
    each = max(FOLDS, rows // len(labels))
    chosen = [
        (index, number)
        for number, name in enumerate(labels)
        for index in sorted(random.permutation(groups[name])[:each].tolist())
    ]
    left_out = sum(len(members) for name, members in groups.items() if name not in labels)
    return _Sample(
        [found.texts[index] for index, _ in chosen],
        np.array([number for _, number in chosen], dtype=np.int64),
        labels,
        left_out,
        found.note,
    )


def _try(
    name: str, folder: Path, kind: BaseKind, sample: _Sample, template: str
) -> tuple[BaseTrial, NDArray[np.int64]]:
    """Try one candidate. Returns the trial without its interval, and the probe's label indices [N]."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import PredefinedSplit, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model: Any = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = read_tokenizer(str(folder))
    pooling = read_pooling(folder)
    _vectors(model, tokenizer, sample.texts[:BATCH], pooling)  # the first passes are slower
    vectors, speed = _vectors(model, tokenizer, sample.texts, pooling)
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=500))
    folds = fold_plan(families(sample.texts), FOLDS, 0, sample.truth.tolist())
    answers: NDArray[np.int64] = cross_val_predict(
        probe, vectors, sample.truth, cv=PredefinedSplit(folds)
    )
    if kind == "causal":
        zero_shot = _likeliest(folder, sample, template)
    else:
        words = [label.replace("_", " ") for label in sample.labels]
        names, _ = _vectors(model, tokenizer, words, pooling)
        zero_shot = float(np.mean((vectors @ names.T).argmax(axis=1) == sample.truth))
    trial = BaseTrial(
        name=name,
        kind=kind,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        tokens_per_second=speed,
        probe=float(np.mean(answers == sample.truth)),
        probe_interval=(0.0, 1.0),
        zero_shot=zero_shot,
    )
    return trial, answers


def _vectors(
    model: Any, tokenizer: Any, texts: Sequence[str], pooling: Pooling
) -> tuple[NDArray[np.float64], float]:
    """Return unit vectors [N, hidden] of the texts, and the tokens per second of the forward passes."""
    limit = min(MAX_TOKENS, longest_text(model.config.to_dict()))
    ids = tokenizer(list(texts), truncation=True, max_length=limit)["input_ids"]
    order = sorted(range(len(ids)), key=lambda index: len(ids[index]))
    vectors = np.empty((len(ids), model.config.hidden_size))
    tokens, seconds = 0, 0.0
    for start in range(0, len(order), BATCH):
        chunk = order[start : start + BATCH]
        rows = [ids[index] or [tokenizer.eos_token_id or 0] for index in chunk]
        mask = padding_mask(rows)
        batch = pad_tokens(rows, tokenizer)
        began = time.perf_counter()
        with torch.inference_mode():
            states = model(input_ids=batch, attention_mask=mask).last_hidden_state
        seconds += time.perf_counter() - began
        tokens += int(mask.sum())
        vectors[chunk] = pool(states, mask, True, pooling).double().numpy()
    return vectors, tokens / seconds


def _likeliest(folder: Path, sample: _Sample, template: str) -> float:
    """Return the accuracy of the likeliest label after the prompt, scored as serving scores it."""
    random = np.random.default_rng(0)
    rows = random.permutation(len(sample.truth))[:ZERO_SHOT_ROWS]
    ensemble = Ensemble(
        format=1,
        name="base",
        version=1,
        task="classification",
        members=[Member(name="base", adapters=[])],
        fusion=FusionSpec(method="average"),
        labels=list(sample.labels),
        template=template,
        verbalizers={label: " " + label.replace("_", " ") for label in sample.labels},
        label_scoring="mean",
    )
    with tempfile.TemporaryDirectory() as scratch:
        bundle = Bundle.create(Path(scratch) / "bundle", BaseSpec(path=str(folder.resolve())))
        texts = [sample.texts[row] for row in rows]
        [probabilities] = OfflineMembers(bundle, ensemble).outputs(texts)
    return float(np.mean(probabilities.argmax(axis=1) == sample.truth[rows]))


def _ends(compared: Comparison, number: int) -> tuple[float, float]:
    found = compared.interval(number, "probe")
    return found.low, found.high

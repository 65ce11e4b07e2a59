"""Bundles whose stored outputs are made up: no model is trained for a report's figures."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serve.bundle import BaseSpec, Bundle
from serve.fusion.fitting.fit import Targets
from serve.fusion.fitting.options import FusionOptions
from serve.fusion.fitting.stored_scores import Question, RowsHeader, ValidationRows
from serve.manifest import AdapterRef, Ensemble, FusionSpec, Member, Method, Task

ROWS_DIGEST = "sha256:" + "0" * 64


def stored_bundle(
    folder: Path,
    outputs: NDArray[np.float64],
    truth: Targets,
    *,
    task: Task = "classification",
    labels: list[str] | None = None,
    options: FusionOptions | None = None,
    name: str = "intents",
    method: Method = "average",
) -> Bundle:
    """A bundle with one ensemble whose members a, b, ... gave these outputs [M, N, C] or [M, N] on validation rows."""
    bundle = Bundle.create(folder, BaseSpec(path="base", kind="encoder"))
    members = [
        Member(
            name=chr(ord("a") + number),
            adapters=[
                AdapterRef(adapter=f"x-{number}", digest=f"sha256:{number + 1:x}" + 63 * "0")
            ],
        )
        for number in range(len(outputs))
    ]
    ensemble = Ensemble(
        format=1,
        name=name,
        version=1,
        task=task,
        labels=labels,
        members=members,
        fusion=FusionSpec(method=method),
        thresholds=dict.fromkeys(labels or [], 0.5) if task == "multilabel" else {},
    )
    bundle.write_ensemble(ensemble)
    stored = bundle.validation_scores(name)
    header = RowsHeader(
        rows=ROWS_DIGEST,
        question=Question.of(ensemble),
        options=options or FusionOptions.model_validate({"method": method}),
    )
    stored.write_rows(ValidationRows(header, truth, np.arange(len(truth)) % 5))
    for member, own in zip(members, outputs, strict=True):
        stored.write_outputs(member, ROWS_DIGEST, own)
    return bundle


def label_outputs(
    members: int, rows: int, labels: int, *, skill: float = 3.0, seed: int = 0
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Probabilities [M, N, C] that share part of their errors, and the right labels [N]."""
    random = np.random.default_rng(seed)
    truth = random.integers(labels, size=rows)
    common = random.normal(size=(rows, labels))
    logits = common + random.normal(size=(members, rows, labels))
    logits[:, np.arange(rows), truth] += skill
    probabilities = np.exp(logits - logits.max(axis=2, keepdims=True))
    return probabilities / probabilities.sum(axis=2, keepdims=True), truth


def written_metrics(bundle: Bundle) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((bundle.path / "report/metrics.json").read_text())
    return found

"""Validation scores on disk."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from serve.fusion.errors import FusionError
from serve.fusion.fitting.options import FusionOptions
from serve.fusion.fitting.stored_scores import (
    Question,
    RowsHeader,
    ValidationRows,
    ValidationScores,
)
from serve.manifest import AdapterRef, Ensemble, FusionSpec, Member

ROWS = f"sha256:{'1' * 64}"
TWO = [AdapterRef(adapter=name, digest=f"sha256:{name * 64}") for name in "ab"]


def rows() -> ValidationRows:
    ensemble = Ensemble(
        format=1,
        name="x",
        version=1,
        task="classification",
        labels=["yes", "no"],
        members=[Member(name="a", adapters=[])],
        fusion=FusionSpec(method="average"),
    )
    header = RowsHeader(rows=ROWS, question=Question.of(ensemble), options=FusionOptions(folds=7))
    return ValidationRows(header, np.array([0, 1, 1]), np.array([0, 1, 0]))


def test_what_is_written_is_read(tmp_path: Path) -> None:
    scores = ValidationScores(tmp_path / "validation")
    assert scores.rows() is None
    scores.write_rows(rows())
    found = scores.rows()
    assert found is not None
    assert found.header == rows().header
    assert found.truth.tolist() == [0, 1, 1]
    assert found.folds.tolist() == [0, 1, 0]


def test_outputs_are_found_by_the_adapters_whichever_is_named_first(tmp_path: Path) -> None:
    scores = ValidationScores(tmp_path)
    outputs = np.random.default_rng(0).random((3, 4, 2))
    names = (TWO, TWO[:1], [])
    for adapters, own in zip(names, outputs, strict=True):
        scores.write_outputs(Member(name="m", adapters=adapters), ROWS, own)
    for adapters, own in zip((TWO[::-1], TWO[:1], []), outputs, strict=True):
        found = scores.outputs(Member(name="other", adapters=adapters), ROWS)
        np.testing.assert_array_equal(found, own)
    assert scores.outputs(Member(name="m", adapters=TWO[1:]), ROWS) is None


def test_a_digest_that_only_begins_alike_is_another(tmp_path: Path) -> None:
    scores = ValidationScores(tmp_path)
    scores.write_outputs(Member(name="m", adapters=TWO[:1]), ROWS, np.zeros((1, 2)))
    alike = AdapterRef(adapter="a", digest=f"sha256:{'a' * 12}{'c' * 52}")
    assert scores.outputs(Member(name="m", adapters=[alike]), ROWS) is None


def test_answers_without_a_fold_for_each_are_refused(tmp_path: Path) -> None:
    scores = ValidationScores(tmp_path)
    scores.write_rows(rows())
    file = tmp_path / "rows.safetensors"
    tensors = load_file(file) | {"folds": np.array([0])}
    save_file(tensors, file, metadata={"choir": rows().header.model_dump_json()})
    with pytest.raises(FusionError, match="not a fold for each"):
        scores.rows()
    save_file({"truth": tensors["truth"]}, file)
    with pytest.raises(FusionError, match="holds no validation scores"):
        scores.rows()

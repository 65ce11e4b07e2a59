"""A gate learns whom to ask."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, log_loss

from serve.fusion import gate as module
from serve.fusion.asking.asking import asked_offline
from serve.fusion.asking.routed import Routed
from serve.fusion.errors import FusionError, OutputError, StaleFusionError
from serve.fusion.fitting.fit import fit_fusion, refit_fusion
from serve.fusion.fitting.options import FusionOptions
from serve.fusion.fuse import Fusion
from serve.fusion.fused import Fused
from serve.fusion.gate import Gate
from serve.manifest import Ensemble

Make = Callable[..., Any]
LABELS = tuple("abcdefgh")
FILE = {"method": "gate", "model": "gate", "parameters": "fusion/intents/1/gate.json"}


def teams(rows: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Four members that know the messages of their own team, and are sure of little that is right about the others':
    their probabilities [M, N, C], the labels [N], and vectors of the base [N, H] from which the team can mostly be
    told."""
    rng = np.random.default_rng(seed)
    team, truth = rng.integers(4, size=rows), rng.integers(len(LABELS), size=rows)
    scores = rng.normal(size=(4, rows, len(LABELS)))
    for member in range(4):
        scores[member, team != member] *= 2
        scores[member, np.arange(rows), truth] += np.where(team == member, 4.0, 0.7)
    vectors = rng.normal(size=(rows, 32)) + 0.1
    vectors[np.arange(rows), team] += 2.5
    powers = np.exp(scores)
    return powers / powers.sum(axis=-1, keepdims=True), truth, vectors


def draft(make_ensemble: Make) -> Ensemble:
    ensemble: Ensemble = make_ensemble((None,) * 4, labels=LABELS)
    return ensemble


def options(**changes: Any) -> FusionOptions:
    return FusionOptions(**({"method": "gate", "candidates": ["gate"]} | changes))


@pytest.mark.parametrize("penalty", [0.03, 1.0])
def test_where_one_member_is_right_it_is_scikit_learns_regression(penalty: float) -> None:
    rng = np.random.default_rng(1)
    vectors, expert = rng.normal(size=(300, 6)), rng.integers(3, size=300)
    vectors[np.arange(300), expert] += 1
    right = np.full((300, 3), 1e-12)
    right[np.arange(300), expert] = 1
    coefficients, intercept = module._mixture(vectors, right, penalty)
    expected = LogisticRegression(C=penalty, max_iter=1000, tol=1e-8).fit(vectors, expert)
    scores = vectors @ coefficients.T + intercept
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    found = powers / powers.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(found, expected.predict_proba(vectors), atol=2e-3)


def test_members_that_know_different_things_beat_their_average_at_fewer_passes(
    make_ensemble: Make,
) -> None:
    outputs, truth, vectors = teams(4000)
    known, new = slice(0, 1000), slice(1000, None)
    figures = {}
    for top_k in (1, 2, None):
        fitted = fit_fusion(
            draft(make_ensemble),
            options(top_k=top_k),
            outputs[:, known],
            truth[known],
            np.arange(1000) % 5,
            vectors[known],
        )
        fusion = Fusion(fitted.ensemble, fitted.parameters)
        routed = Routed(fusion, 3000)
        said = asked_offline(routed, outputs[:, new], vectors[new])
        assert isinstance(said, Fused)
        assert (routed.asked.sum(axis=0) == (top_k or 4)).all()
        figures[top_k] = (
            accuracy_score(truth[new], said.winners),
            log_loss(truth[new], said.probabilities),
        )
    average = outputs[:, new].mean(axis=0)
    plain = accuracy_score(truth[new], average.argmax(axis=1)), log_loss(truth[new], average)
    for accuracy, loss in figures.values():
        assert accuracy > plain[0] + 0.1
        assert loss < plain[1] * 0.6
    assert figures[2][1] < figures[1][1], "two members are surer than one"


def test_members_that_know_the_same_are_nearly_averaged(make_ensemble: Make, noisy: Make) -> None:
    """With nothing to learn, the gate keeps near to equal weights, and its loss to the average's."""
    outputs, truth = noisy(4, 2000, 8, (2.0,) * 4)
    vectors = np.random.default_rng(2).normal(size=(2000, 32))
    gate = Gate.fit(outputs[:, :1000], truth[:1000], vectors[:1000], draft(make_ensemble))
    weights = gate.weights(vectors[1000:])
    np.testing.assert_allclose(weights.sum(axis=0), 1)
    mixed = np.einsum("mn,mnc->nc", weights, outputs[:, 1000:])
    average = outputs[:, 1000:].mean(axis=0)
    assert log_loss(truth[1000:], mixed) < 1.05 * log_loss(truth[1000:], average)


def test_a_gate_survives_its_file_and_belongs_to_its_adapters(
    make_ensemble: Make, tmp_path: Path
) -> None:
    outputs, truth, vectors = teams(600)
    fitted = fit_fusion(
        draft(make_ensemble), options(top_k=2), outputs, truth, np.arange(600) % 5, vectors
    )
    assert (
        fitted.ensemble.fusion.model_dump(exclude_none=True).items()
        >= (FILE | {"top_k": 2}).items()
    )
    assert isinstance(fitted.parameters, Gate)
    file = tmp_path / "gate.json"
    fitted.parameters.write(file)
    served = Fusion.from_manifest(fitted.ensemble, file)
    expected = Fusion(fitted.ensemble, fitted.parameters)(outputs, vectors=vectors)
    found = served(outputs, vectors=vectors)
    assert isinstance(found, Fused)
    assert isinstance(expected, Fused)
    np.testing.assert_array_equal(found.probabilities, expected.probabilities)
    swapped = make_ensemble((None,) * 4, labels=LABELS, changed=(3,), **FILE)
    with pytest.raises(StaleFusionError, match=r"The gate of intents@1 .* those of m3"):
        Fusion.from_manifest(swapped, file)
    assert Fusion.from_manifest(swapped, file, allow_stale=True).stale
    again = refit_fusion(fitted.ensemble, options(), outputs, truth, np.arange(600) % 5, vectors)
    assert isinstance(again.parameters, Gate)
    assert again.parameters.content() == fitted.parameters.content()
    assert again.ensemble.fusion == fitted.ensemble.fusion


def test_what_a_gate_cannot_read_is_refused(make_ensemble: Make, tmp_path: Path) -> None:
    outputs, truth, vectors = teams(80)
    own = draft(make_ensemble)
    with pytest.raises(FusionError, match="there are none; it needs a base that heads read"):
        fit_fusion(own, options(), outputs, truth, np.arange(80) % 5)
    fusion = Fusion(own, Gate.fit(outputs, truth, vectors, own))
    with pytest.raises(FusionError, match="there are none"):
        fusion(outputs, method="gate")
    with pytest.raises(OutputError, match="reads vectors of 32 values, and the base's have 31"):
        fusion(outputs, method="gate", vectors=vectors[:, 1:])
    with pytest.raises(OutputError, match="not finite"):
        fusion(outputs, method="gate", vectors=vectors * np.nan)
    with pytest.raises(FusionError, match="has no gate that was fitted on its adapters"):
        Fusion(own)(outputs, method="gate", vectors=vectors)
    file = tmp_path / "gate.json"
    file.write_text("{}")
    with pytest.raises(FusionError, match="not a fitted gate"):
        Gate.read(file)

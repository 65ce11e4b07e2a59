"""The learned stacker: against scikit-learn, its file, and what makes it stale."""

import json

import numpy as np
import pytest
from scipy.special import logit
from sklearn.ensemble import StackingClassifier
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.multiclass import OneVsRestClassifier

from serve.fusion.errors import FusionError, OutputError, StaleFusionError
from serve.fusion.fuse import Fusion
from serve.fusion.labels.pooling import CLIP
from serve.fusion.labels.temperature import fit_temperature, temper
from serve.fusion.stack import LinearStack, linear

WEAK = 1e9
"""A penalty so weak that shared and own coefficients are free, as in separate regressions."""


@pytest.fixture
def free(monkeypatch):
    """Deviations that are scaled as little as the rest, so that the solver comes near the end without a penalty."""
    monkeypatch.setattr(linear, "DEVIATION_SCALE", 0.5)


STACK = {
    "method": "stack",
    "model": "logistic_regression",
    "parameters": "fusion/intents/1/stack.json",
}


def many_labels(count):
    return tuple(f"l{index:03}" for index in range(count))


def test_two_labels_are_scikit_learns_stacking(make_ensemble):
    """Members are scikit-learn models; their stacked decision functions are the log-odds."""
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(600, 6))
    targets = (inputs @ rng.normal(size=6) + rng.normal(scale=2, size=600) > 0).astype(int)
    fitted = [
        (f"m{index}", FrozenEstimator(OnColumns(columns).fit(inputs[:200], targets[:200])))
        for index, columns in enumerate([(0, 1), (2, 3), (4, 5, 0)])
    ]
    reference = StackingClassifier(
        fitted,
        final_estimator=LogisticRegression(C=WEAK),
        cv="prefit",
        stack_method="decision_function",
    ).fit(inputs[200:400], targets[200:400])
    members = np.stack([member.predict_proba(inputs) for _, member in fitted])
    ensemble = make_ensemble(labels=("no", "yes"))
    stack = LinearStack.fit(members[:, 200:400], targets[200:400], ensemble, penalty=WEAK)
    fused = Fusion(ensemble, stack)(members[:, 400:], method="stack").probabilities
    np.testing.assert_allclose(fused, reference.predict_proba(inputs[400:]), atol=2e-3)


class OnColumns(LogisticRegression):
    """A logistic regression that sees some columns only."""

    def __init__(self, columns=()):
        super().__init__()
        self.columns = columns

    def _seen(self, X):
        return np.asarray(X)[:, list(self.columns)]

    def fit(self, X, y):
        return super().fit(self._seen(X), y)

    def decision_function(self, X):
        return super().decision_function(self._seen(X))

    def predict_proba(self, X):
        odds = self.decision_function(X)
        return np.stack([1 / (1 + np.exp(odds)), 1 / (1 + np.exp(-odds))], axis=1)


def test_several_labels_are_one_regression_each_normalised_over_labels(make_ensemble, noisy, free):
    members, targets = noisy(2, 3000, 4, skills=(1.0, 0.5))
    ensemble = make_ensemble((None, None))
    stack = LinearStack.fit(members, targets, ensemble, penalty=WEAK)
    fused = Fusion(ensemble, stack)(members, method="stack").probabilities
    each = []
    for label in range(4):
        odds = logit(members[:, :, label].T)
        model = LogisticRegression(C=WEAK).fit(odds, targets == label)
        each.append(model.predict_proba(odds)[:, 1])
    expected = np.stack(each, axis=1)
    expected /= expected.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(fused, expected, atol=5e-3)


def test_it_learns_which_member_knows_which_label(make_ensemble):
    """Each member is right about one half of the labels only; weights for whole members cannot use
    that."""
    rng = np.random.default_rng(0)
    targets = rng.integers(4, size=2000)
    scores = rng.normal(size=(2, 2000, 4))
    knows = [(0, 1), (2, 3)]
    for member, labels in enumerate(knows):
        rows = np.isin(targets, labels)
        scores[member, rows, targets[rows]] += 3
    members = np.exp(scores) / np.exp(scores).sum(axis=-1, keepdims=True)
    ensemble = make_ensemble((None, None))
    stack = LinearStack.fit(members[:, :1000], targets[:1000], ensemble)
    fusion = Fusion(ensemble, stack)
    held_out, truth = members[:, 1000:], targets[1000:]
    stacked, averaged = (
        log_loss(truth, fusion(held_out, method=method).probabilities)
        for method in ("stack", "average")
    )
    assert stacked < 0.9 * averaged


def test_77_labels_with_few_rows_beat_the_plain_average(make_ensemble, noisy):
    """About 9 rows a label, as a small validation split has; the members' skills differ."""
    members, targets = noisy(3, 1400, 77, skills=(5.0, 3.0, 1.0))
    ensemble = make_ensemble(labels=many_labels(77))
    stack = LinearStack.fit(members[:, :700], targets[:700], ensemble)
    fusion = Fusion(ensemble, stack)
    fused = {m: fusion(members[:, 700:], method=m) for m in ("stack", "average")}
    truth = targets[700:]
    loss = {m: log_loss(truth, f.probabilities, labels=range(77)) for m, f in fused.items()}
    right = {m: (f.winners == truth).mean() for m, f in fused.items()}
    assert loss["stack"] < loss["average"]
    assert right["stack"] > right["average"]


def test_members_that_are_alike_cost_little_with_few_rows(make_ensemble):
    """Nothing can be learned about members that err alike, and little may be lost by the attempt."""
    rng = np.random.default_rng(0)
    targets = rng.integers(77, size=2000)
    scores = 2 * rng.normal(size=(1, 2000, 77)) + rng.normal(size=(6, 2000, 77))
    scores[:, np.arange(2000), targets] += 8
    members = np.exp(scores) / np.exp(scores).sum(axis=-1, keepdims=True)
    ensemble = make_ensemble((None,) * 6, labels=many_labels(77))
    stack = LinearStack.fit(members[:, :400], targets[:400], ensemble)
    stacked = Fusion(ensemble, stack)(members[:, 400:], method="stack").probabilities
    averaged = members.mean(axis=0)
    best = temper(averaged[400:], fit_temperature(averaged[:400], targets[:400]))
    truth = targets[400:]
    limit = 1.1 * log_loss(truth, best, labels=range(77))
    assert log_loss(truth, stacked, labels=range(77)) < limit


def test_it_beats_a_plain_one_vs_rest_where_rows_are_few(make_ensemble, noisy):
    """What sharing coefficients between labels is for."""
    members, targets = noisy(3, 1000, 40, skills=(4.0, 2.0, 1.0))
    ensemble = make_ensemble(labels=many_labels(40))
    stack = LinearStack.fit(members[:, :200], targets[:200], ensemble)
    fused = Fusion(ensemble, stack)(members[:, 200:], method="stack").probabilities
    flat = np.moveaxis(members, 0, 1).reshape(1000, -1)
    plain = OneVsRestClassifier(LogisticRegression()).fit(flat[:200], targets[:200])
    truth = targets[200:]
    reference = log_loss(truth, plain.predict_proba(flat[200:]), labels=range(40))
    assert log_loss(truth, fused, labels=range(40)) < reference


def test_more_members_than_features_are_grouped(make_ensemble, noisy):
    members, targets = noisy(35, 200, 3)
    ensemble = make_ensemble((None,) * 35, labels=("a", "b", "c"))
    stack = LinearStack.fit(members, targets, ensemble)
    assert {len(row) for row in stack.parameters.coefficients} == {16}
    fused = Fusion(ensemble, stack)(members, method="stack")
    np.testing.assert_allclose(fused.probabilities.sum(axis=1), 1, atol=1e-9)
    assert (fused.winners == targets).mean() > 0.95


def test_certain_members_give_finite_answers(make_ensemble):
    members = np.repeat(np.eye(4)[None, [0, 1, 2, 3, 0, 1]], 3, axis=0)
    ensemble = make_ensemble()
    stack = LinearStack.fit(members, [0, 1, 2, 3, 0, 1], ensemble)
    fused = Fusion(ensemble, stack)(members, method="stack")
    assert np.isfinite(fused.probabilities).all()
    np.testing.assert_array_equal(fused.winners, [0, 1, 2, 3, 0, 1])


def test_it_hardly_moves_under_the_rounding_of_float32(make_ensemble, noisy):
    members, targets = noisy(3, 500, 4, skills=(12.0, 9.0, 6.0))
    ensemble = make_ensemble()
    fusion = Fusion(ensemble, LinearStack.fit(members, targets, ensemble))
    exact = fusion(members, method="stack").probabilities
    rounded = fusion(members.astype(np.float32), method="stack").probabilities
    assert np.abs(exact - rounded).max() < 1e-4
    assert (1 - members.max(axis=-1)).min() < CLIP


def test_the_file_is_plain_json_and_answers_the_same(make_ensemble, noisy, tmp_path):
    members, targets = noisy(3, 300, 77)
    ensemble = make_ensemble(labels=many_labels(77), **STACK)
    stack = LinearStack.fit(members, targets, ensemble)
    file = tmp_path / "fusion" / "intents" / "1" / "stack.json"
    stack.write(file)
    stored = json.loads(file.read_text())
    assert stored["labels"] == ensemble.labels
    assert stored["members"] == ["m0", "m1", "m2"]
    assert stored["digests"][1] == [ensemble.members[1].adapters[0].digest]
    assert file.stat().st_size < 100_000
    assert [each.name for each in file.parent.iterdir()] == ["stack.json"]
    read = Fusion.from_manifest(ensemble, file)
    np.testing.assert_array_equal(
        read(members).probabilities, Fusion(ensemble, stack)(members).probabilities
    )
    assert read.methods == ("average", "weighted_average", "vote", "stack")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"coefficients": [[1.0]]}, "4 rows .labels. of 3 numbers"),
        ({"intercept": [0.0]}, "4 numbers, one a label"),
        ({"intercept": [float("nan")] * 4}, "intercept"),
        ({"labels": ["a", "b", "c", "d"]}, "other labels"),
        ({"members": ["m1", "m0", "m2"]}, "fitted on the members m1, m0, m2"),
        ({"digests": []}, "3 lists, one a member"),
        ({"model": "gradient_boosting"}, "model"),
        ({"extra": 1}, "extra: this field is not known"),
    ],
)
def test_an_unsound_file_is_refused(make_ensemble, noisy, tmp_path, change, reason):
    members, targets = noisy(3, 50, 4)
    ensemble = make_ensemble(**STACK)
    file = tmp_path / "stack.json"
    LinearStack.fit(members, targets, ensemble).write(file)
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(FusionError, match=reason):
        Fusion.from_manifest(ensemble, file)


def test_files_that_are_no_stackers_are_refused(make_ensemble, tmp_path):
    ensemble = make_ensemble(**STACK)
    file = tmp_path / "stack.json"
    with pytest.raises(FusionError, match="cannot be read"):
        Fusion.from_manifest(ensemble, file)
    file.write_bytes(b"\x80\x04.")
    with pytest.raises(FusionError, match="not a fitted stacker"):
        Fusion.from_manifest(ensemble, file)
    file.write_bytes(b" " * 1_000_001)
    with pytest.raises(FusionError, match="larger than 1,000,000 bytes"):
        Fusion.from_manifest(ensemble, file)
    with pytest.raises(FusionError, match="their file was not given"):
        Fusion.from_manifest(ensemble, None)


def test_a_stacker_of_too_many_labels_is_not_written(make_ensemble, noisy, tmp_path):
    members, targets = noisy(2, 50, 4)
    stack = LinearStack.fit(members, targets, make_ensemble((None, None)))
    many = 30_000
    large = stack.parameters.model_copy(
        update={
            "labels": list(many_labels(many)),
            "coefficients": [[0.123456789, 0.123456789]] * many,
            "intercept": [0.123456789] * many,
        }
    )
    with pytest.raises(FusionError, match=r"30000 labels would have .* at most 1,000,000"):
        LinearStack(large).write(tmp_path / "stack.json")
    assert list(tmp_path.iterdir()) == []


def test_a_stacker_of_other_adapters_is_stale(make_ensemble, noisy, tmp_path):
    members, targets = noisy(3, 50, 4)
    file = tmp_path / "stack.json"
    LinearStack.fit(members, targets, make_ensemble()).write(file)
    swapped = make_ensemble(changed=(1,), **STACK)
    with pytest.raises(StaleFusionError, match=r"those of m1: .*allow_stale_fusion"):
        Fusion.from_manifest(swapped, file)
    allowed = Fusion.from_manifest(swapped, file, allow_stale=True)
    assert allowed.stale
    fresh = Fusion.from_manifest(make_ensemble(**STACK), file)
    assert not fresh.stale
    np.testing.assert_array_equal(allowed(members).winners, fresh(members).winners)


def test_a_stale_stacker_that_is_only_offered_is_left_out(make_ensemble, noisy, tmp_path):
    """A swap must not fail over a method that nobody uses; nor may anybody use it afterwards."""
    members, targets = noisy(3, 50, 4)
    file = tmp_path / "stack.json"
    LinearStack.fit(members, targets, make_ensemble()).write(file)
    fusion = Fusion.from_manifest(make_ensemble(changed=(1,), **(STACK | {"method": "vote"})), file)
    assert fusion.methods == ("average", "weighted_average", "vote")
    assert not fusion.stale
    with pytest.raises(FusionError, match="no stacker that was fitted on its adapters"):
        fusion(members, method="stack")


def test_allowing_what_is_stale_does_not_allow_other_members(make_ensemble, noisy, tmp_path):
    members, targets = noisy(3, 50, 4)
    file = tmp_path / "stack.json"
    LinearStack.fit(members, targets, make_ensemble()).write(file)
    with pytest.raises(FusionError, match="fitted on the members"):
        Fusion.from_manifest(make_ensemble((None, None), **STACK), file, allow_stale=True)


def test_coefficients_that_overflow_give_an_error_and_no_answer(make_ensemble, noisy):
    """Finite numbers all, as a file may hold them; infinity less infinity is no probability."""
    members, targets = noisy(3, 60, 4)
    ensemble = make_ensemble(**STACK)
    parameters = LinearStack.fit(members, targets, ensemble).parameters
    huge = parameters.model_copy(update={"coefficients": [[1.7e308, -1.7e308, 0.0]] * 4})
    fusion = Fusion(ensemble, LinearStack(huge))
    sure = np.array([[[0.97, 0.01, 0.01, 0.01]]] * 3)
    with pytest.raises(OutputError, match=r"intents@1 is not finite .* in row 0"):
        fusion(sure)
    assert fusion(sure, method="average").winners.tolist() == [0]

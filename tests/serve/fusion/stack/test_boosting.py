"""Stacking by gradient boosting: against LightGBM itself, its file, and what it learns. And linear stacks of sets and
values."""

import lightgbm
import numpy as np
import pytest
from scipy.special import expit, logit
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.metrics import log_loss

from serve.fusion.errors import FusionError, StaleFusionError
from serve.fusion.fuse import Fusion
from serve.fusion.labels.pooling import CLIP
from serve.fusion.stack import MAX_BYTES, BoostingStack, LinearStack, linear, read_stack

BOOSTED = {
    "method": "stack",
    "model": "gradient_boosting",
    "parameters": "fusion/intents/1/stack.txt",
}


def test_the_answer_is_lightgbms_own_on_the_average(make_ensemble, noisy, tmp_path):
    """The file is loaded by LightGBM as it is, fed with features computed here."""
    members, targets = noisy(2, 300, 4, skills=(2.0, 0.5))
    ensemble = make_ensemble((None, None), **BOOSTED)
    file = tmp_path / "stack.txt"
    BoostingStack.fit(members, targets, ensemble).write(file)
    odds = logit(np.clip(members, CLIP, 1 - CLIP))
    mean = odds.mean(axis=0)
    features = []
    for row in range(300):
        for label in range(4):
            others = np.delete(mean[row], label)
            own = odds[:, row, label]
            features.append([*own, own.mean(), own.std(), mean[row, label] - others.max()])
    booster = lightgbm.Booster(model_file=str(file))
    scores = mean + booster.predict(np.array(features), raw_score=True).reshape(300, 4)
    expected = expit(scores) / expit(scores).sum(axis=1, keepdims=True)
    fused = Fusion.from_manifest(ensemble, file)(members)
    np.testing.assert_allclose(fused.probabilities, expected, atol=1e-12)
    np.testing.assert_array_equal(fused.winners, expected.argmax(axis=1))


def test_it_learns_what_no_weights_can(make_ensemble):
    """Member m0 is right when it is sure and misleading when it is not; an average cannot say so."""
    rng = np.random.default_rng(0)
    targets = rng.integers(4, size=2000)
    scores = rng.normal(size=(3, 2000, 4)) * 0.5
    sure = rng.random(2000) < 0.5
    rows = np.arange(2000)
    scores[0, rows[sure], targets[sure]] += 6
    scores[0, rows[~sure], (targets[~sure] + 1) % 4] += 2
    for member in (1, 2):
        scores[member, rows, targets] += 1
    members = np.exp(scores) / np.exp(scores).sum(axis=-1, keepdims=True)
    ensemble = make_ensemble()
    fusion = Fusion(ensemble, BoostingStack.fit(members[:, :1000], targets[:1000], ensemble))
    loss = {
        method: log_loss(targets[1000:], fusion(members[:, 1000:], method=method).probabilities)
        for method in ("stack", "average")
    }
    assert loss["stack"] < 0.7 * loss["average"]


def test_few_rows_do_little_harm(make_ensemble, noisy):
    """It starts from the average: what it does with 12 rows is near that."""
    members, targets = noisy(3, 400, 4, skills=(2.0, 2.0, 2.0))
    ensemble = make_ensemble()
    fusion = Fusion(ensemble, BoostingStack.fit(members[:, :12], targets[:12], ensemble))
    loss = {
        method: log_loss(targets[12:], fusion(members[:, 12:], method=method).probabilities)
        for method in ("stack", "average")
    }
    assert loss["stack"] < 1.5 * loss["average"]


@pytest.mark.parametrize("count", [2, 13, 16, 35])
def test_no_label_has_more_than_16_features(make_ensemble, noisy, count):
    members, targets = noisy(count, 120, 3)
    ensemble = make_ensemble((None,) * count, labels=("a", "b", "c"))
    stack = BoostingStack.fit(members, targets, ensemble)
    booster = lightgbm.Booster(model_str=stack.content())
    assert booster.num_feature() == min(count, 13) + 3 <= 16
    fused = Fusion(ensemble, stack)(members, method="stack")
    np.testing.assert_allclose(fused.probabilities.sum(axis=1), 1, atol=1e-9)


def test_the_file_answers_the_same_and_is_small(make_ensemble, noisy, tmp_path):
    members, targets = noisy(4, 800, 77)
    labels = tuple(f"l={index:03}" for index in range(77))
    ensemble = make_ensemble((None,) * 4, labels=labels, **BOOSTED)
    stack = BoostingStack.fit(members, targets, ensemble)
    file = tmp_path / "stack.txt"
    stack.write(file)
    assert file.stat().st_size < MAX_BYTES
    assert file.read_bytes()[:5] == b"tree\n", "LightGBM's text, not a pickle"
    read = Fusion.from_manifest(ensemble, file)
    np.testing.assert_array_equal(
        read(members).probabilities, Fusion(ensemble, stack)(members).probabilities
    )
    again = BoostingStack.fit(members, targets, ensemble)
    assert again.content() == stack.content(), "the same fit gives the same file"
    assert read(np.zeros((4, 0, 77))).probabilities.shape == (0, 77)


def test_a_label_may_hold_what_unicode_calls_a_line_end(make_ensemble, noisy, tmp_path):
    members, targets = noisy(3, 120, 3)
    ensemble = make_ensemble(labels=("a\u2028b", "c\u0085d", "e\x0bf"), **BOOSTED)
    stack = BoostingStack.fit(members, targets, ensemble)
    stack.write(tmp_path / "stack.txt")
    np.testing.assert_array_equal(
        Fusion.from_manifest(ensemble, tmp_path / "stack.txt")(members).probabilities,
        Fusion(ensemble, stack)(members).probabilities,
    )


def test_it_is_bound_to_adapters_task_and_model(make_ensemble, noisy, tmp_path):
    members, targets = noisy(3, 60, 4)
    file = tmp_path / "stack.txt"
    BoostingStack.fit(members, targets, make_ensemble()).write(file)
    with pytest.raises(StaleFusionError, match="those of m1"):
        Fusion.from_manifest(make_ensemble(changed=(1,), **BOOSTED), file)
    assert Fusion.from_manifest(
        make_ensemble(changed=(1,), **BOOSTED), file, allow_stale=True
    ).stale
    tags = make_ensemble(task="multilabel", **BOOSTED)
    with pytest.raises(FusionError, match="was fitted for classification, not for multilabel"):
        Fusion.from_manifest(tags, file)
    linear = make_ensemble(**(BOOSTED | {"model": "logistic_regression"}))
    with pytest.raises(FusionError, match="not a fitted stacker"):
        Fusion.from_manifest(linear, file)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda text: "hello", "a line 'choir=' is missing"),
        (lambda text: text.replace("choir=", "other="), "a line 'choir=' is missing"),
        (lambda text: text[: text.index("Tree=1")], "the file is cut off"),
        (lambda text: text[: text.index("end of trees")], "the file is cut off"),
        (lambda text: text.replace('"format":1', '"format":2'), "not a fitted stacker: format"),
        (lambda text: with_first(text, "leaf_value", "nan"), "not finite"),
        (lambda text: with_first(text, "threshold", "inf"), "not finite"),
        (lambda text: with_first(text, "left_child", "99"), "a child that does not exist"),
        (lambda text: with_first(text, "left_child", "0"), "a child that does not exist"),
        (lambda text: with_first(text, "right_child", "-99"), "a child that does not exist"),
        (lambda text: with_first(text, "split_feature", "6"), "beyond the 6 there are"),
        (lambda text: with_first(text, "split_feature", "x"), "not in LightGBM's text format"),
        (lambda text: with_first(text, "decision_type", "1"), "by category"),
        (lambda text: with_first(text, "num_leaves", "5"), "another number of leaves"),
        (lambda text: with_first(text, "max_feature_idx", "6"), "read 7 features, and there are 6"),
        (lambda text: with_first(text, "num_class", "4"), "not one sum of trees"),
        (lambda text: text.replace('"m0","m1","m2"', '"m0","m1"'), "2 lists, one a member"),
        (lambda text: with_first(text, "left_child", "9" * 30), "not in LightGBM's text format"),
        (lambda text: repeated(text, 20), "take more than 2 ms a row"),
        (lambda text: text + " " * 1_000_000, "larger than 1,000,000 bytes"),
    ],
)
def test_an_unsound_file_is_refused(make_ensemble, noisy, tmp_path, change, reason):
    members, targets = noisy(3, 60, 4)
    file = tmp_path / "stack.txt"
    stack = BoostingStack.fit(members, targets, make_ensemble())
    file.write_text(change(stack.content()))
    with pytest.raises(FusionError, match=reason):
        read_stack(file, "gradient_boosting")


def with_first(text, key, value):
    """The first number of the first line of `key`, replaced."""
    start = text.index(f"\n{key}=") + len(key) + 2
    end = min(text.index(mark, start) for mark in (" ", "\n"))
    return text[:start] + value + text[end:]


def repeated(text, times):
    """The same trees so often."""
    trees = text[text.index("Tree=0") : text.index("end of trees")]
    sizes = next(line for line in text.splitlines() if line.startswith("tree_sizes="))
    more = sizes + (" " + sizes.removeprefix("tree_sizes=")) * (times - 1)
    return text.replace(trees, trees * times).replace(sizes, more)


def test_an_ensemble_that_nothing_can_be_learnt_about_gets_the_average(make_ensemble):
    """Members that all say the same leave LightGBM nothing to split by."""
    members = np.full((2, 40, 4), 0.25)
    ensemble = make_ensemble((None, None))
    stack = BoostingStack.fit(members, np.arange(40) % 4, ensemble)
    fused = Fusion(ensemble, stack)(members, method="stack")
    np.testing.assert_allclose(fused.probabilities, 0.25, atol=1e-9)


def tagged(rows=600, labels=6, seed=0):
    """Member 0 knows the first labels, member 1 the last; sets [N, C]."""
    rng = np.random.default_rng(seed)
    truth = rng.random((rows, labels)) < np.linspace(0.1, 0.5, labels)
    scores = rng.normal(size=(2, rows, labels)) - 1
    knows = np.arange(labels) < labels // 2
    scores[0] += 2.5 * truth * knows
    scores[1] += 2.5 * truth * ~knows
    return expit(scores), truth


TAGS = tuple("abcdef")


def test_sets_are_stacked_by_a_logistic_regression_a_label(make_ensemble, monkeypatch):
    # Deviations that are scaled as little as the rest: the solver comes near the end without a penalty.
    monkeypatch.setattr(linear, "DEVIATION_SCALE", 0.5)
    members, truth = tagged(rows=3000)
    ensemble = make_ensemble((None, None), labels=TAGS, task="multilabel")
    stack = LinearStack.fit(members, truth, ensemble, penalty=1e9)
    fused = Fusion(ensemble, stack)(members, method="stack")
    for label in range(6):
        odds = logit(members[:, :, label].T)
        model = LogisticRegression(C=1e9).fit(odds, truth[:, label])
        np.testing.assert_allclose(
            fused.probabilities[:, label], model.predict_proba(odds)[:, 1], atol=0.02
        )
    np.testing.assert_array_equal(fused.chosen, fused.probabilities >= 0.5)


@pytest.mark.parametrize("kind", [LinearStack, BoostingStack])
def test_stacked_sets_use_what_each_member_knows(make_ensemble, kind):
    members, truth = tagged(rows=1600)
    ensemble = make_ensemble((None, None), labels=TAGS, task="multilabel")
    fusion = Fusion(ensemble, kind.fit(members[:, :800], truth[:800], ensemble))

    def loss(method):
        fused = fusion(members[:, 800:], method=method).probabilities
        return log_loss(truth[800:].ravel(), fused.ravel())

    assert loss("stack") < 0.9 * loss("average")


def test_labels_without_a_single_example_cannot_be_stacked(make_ensemble):
    members, truth = tagged(rows=30)
    ensemble = make_ensemble((None, None), labels=TAGS, task="multilabel")
    with pytest.raises(FusionError, match="these all agree"):
        LinearStack.fit(members, np.zeros_like(truth), ensemble)


def skewed(rows=800, seed=0):
    """Member 0 is twice too low, member 1 is noise around the truth."""
    rng = np.random.default_rng(seed)
    truth = rng.uniform(0, 5, size=rows)
    return np.stack([truth / 2, truth + rng.normal(size=rows)]), truth


def test_values_are_stacked_by_non_negative_least_squares(make_ensemble, tmp_path):
    members, truth = skewed()
    ensemble = make_ensemble(
        (None, None),
        labels=None,
        task="regression",
        method="stack",
        model="linear_regression",
        parameters="fusion/intents/1/stack.json",
    )
    stack = LinearStack.fit(members[:, :400], truth[:400], ensemble)
    reference = LinearRegression(positive=True).fit(members[:, :400].T, truth[:400])
    file = tmp_path / "stack.json"
    stack.write(file)
    fused = Fusion.from_manifest(ensemble, file)(members[:, 400:])
    np.testing.assert_allclose(fused.values, reference.predict(members[:, 400:].T), atol=1e-9)
    assert np.abs(fused.values - truth[400:]).max() < 0.2
    assert (fused.std > 0).all()


def test_values_are_stacked_by_boosted_trees(make_ensemble):
    members, truth = skewed()
    ensemble = make_ensemble((None, None), labels=None, task="regression")
    fusion = Fusion(ensemble, BoostingStack.fit(members[:, :400], truth[:400], ensemble))

    def error(method):
        return np.abs(fusion(members[:, 400:], method=method).values - truth[400:]).mean()

    assert error("stack") < 0.5 * error("average")


@pytest.mark.parametrize(
    ("task", "model"), [("regression", "logistic_regression"), ("multilabel", "linear_regression")]
)
def test_a_stacker_of_another_task_is_refused_by_the_manifest(make_ensemble, task, model):
    labels = None if task == "regression" else TAGS
    with pytest.raises(ValueError, match=f"{model}.* is not for {task}"):
        make_ensemble(task=task, labels=labels, **(BOOSTED | {"model": model}))

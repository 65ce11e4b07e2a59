"""The ensemble manifest: its defaults, and what its schema refuses."""

import time

import pytest
from pydantic import ValidationError

from serve.manifest import Ensemble, FusionSpec, explain
from tests.serve.manifests import DIGEST, ONE, manifest

WEIGHTS = {"a": 1e308, "b": 1e308, "c": 1.0}


def test_defaults_of_the_contract():
    ensemble = Ensemble.model_validate(manifest())
    assert ensemble.template == "{text}"
    assert ensemble.label_scoring == "sum"
    assert ensemble.on_member_error == "fail"
    assert ensemble.fusion == FusionSpec(
        method="average", space="probability", temperature=1, plausibility=0
    )
    assert ensemble.weights() == [0.5, 0.5]


def test_weights_are_normalised_and_default_to_an_equal_share():
    members = [
        {"name": "a", "weight": 1, "adapters": []},
        {"name": "b", "adapters": []},
    ]
    ensemble = Ensemble.model_validate(manifest(members=members))
    assert ensemble.weights() == pytest.approx([2 / 3, 1 / 3])
    product = {"task": "generation", "labels": None, "fusion": {"method": "product"}}
    members[0]["weight"] = -0.5
    contrastive = Ensemble.model_validate(manifest(members=members, **product))
    assert contrastive.weights() == [-0.5, 0.5]


def test_weights_whose_sum_is_no_number_are_shares_all_the_same():
    members = [ONE | {"name": name, "weight": weight} for name, weight in WEIGHTS.items()]
    fields = manifest(members=members, fusion={"method": "weighted_average"})
    assert Ensemble.model_validate(fields).weights() == pytest.approx([0.5, 0.5, 0.0])


def test_digests_are_distinct_and_in_order():
    other = DIGEST.replace("0", "1")
    members = [
        {"name": name, "adapters": [{"adapter": "x", "digest": digest}]}
        for name, digest in (("a", other), ("b", DIGEST), ("c", other))
    ]
    assert Ensemble.model_validate(manifest(members=members)).digests == (other, DIGEST)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"colour": "red"}, "colour: this field is not known"),
        ({"format": 2}, "format"),
        ({"name": "Intents"}, "name"),
        ({"name": "../x"}, "name"),
        ({"name": "a" * 64}, "name"),
        ({"version": 0}, "version"),
        ({"version": "1"}, "version"),
        ({"version": True}, "version"),
        ({"task": "clustering"}, "task"),
        ({"members": []}, "members"),
        ({"members": [ONE, ONE]}, "the member 'a' is given twice"),
        ({"members": [ONE | {"weight": -1}]}, "negative"),
        ({"members": [ONE | {"weight": 0}]}, "all weights are 0"),
        ({"members": [ONE | {"weight": float("nan")}]}, "weight"),
        (
            {
                "task": "generation",
                "labels": None,
                "fusion": {"method": "product"},
                "members": [ONE | {"weight": -1e308}],
            },
            "the weight of 'a' is too large for product",
        ),
        (
            {
                "task": "generation",
                "labels": None,
                "fusion": {"method": "product"},
                "members": [ONE | {"weight": 0}],
            },
            "all weights are 0",
        ),
        ({"members": [ONE | {"weight": "1"}]}, "weight"),
        ({"members": [ONE | {"adapters": [{"adapter": "x", "digest": "abc"}]}]}, "digest"),
        ({"members": [ONE | {"adapters": [{"adapter": "x", "digest": DIGEST}] * 2}]}, "twice"),
        ({"labels": None}, "needs 'labels'"),
        ({"labels": ["yes"]}, "at least 2"),
        ({"labels": ["yes", "yes"]}, "the label 'yes' is given twice"),
        ({"labels": ["yes", ""]}, "labels"),
        ({"task": "generation", "fusion": {"method": "vote"}}, "'labels' is for"),
        ({"fusion": {"method": "product"}}, "not for classification; choose one of average"),
        ({"fusion": {"method": "mean"}}, "method"),
        ({"fusion": {"method": "stack"}}, "needs 'model' and 'parameters'"),
        ({"fusion": {"method": "average", "parameters": "fusion/x.json"}}, "go together"),
        ({"fusion": {"method": "average", "temperature": 0}}, "temperature"),
        ({"fusion": {"method": "vote", "temperature": 2}}, "shares of votes"),
        ({"fusion": {"method": "vote", "space": "log"}}, "average and weighted_average"),
        ({"fusion": {"method": "vote", "extract": {"regex": "x"}}}, "for generation"),
        ({"template": "Intent:"}, "must contain {text}"),
        ({"verbalizers": {"maybe": " perhaps"}}, "'maybe', which is not one of the labels"),
        ({"thresholds": {"yes": 0.5}}, "for multilabel"),
        ({"task": "multilabel", "thresholds": {"yes": 1.5}}, "thresholds"),
        ({"golden": [{"input": "x", "label": "maybe"}]}, "not one of the labels"),
        (
            {"golden": [{"input": {"text_pair": "x"}, "label": "yes"}]},
            "golden.0.input: the input must be a text",
        ),
        ({"golden": [{"input": {"text": "x", "image": "y"}, "label": "yes"}]}, "golden.0.input"),
        (
            {"golden": [{"input": {"text_pair": "x", "image": "data:"}, "label": "yes"}]},
            "'image' (and 'text')",
        ),
        (
            {"golden": [{"input": {"text": "x", "text_pair": None}, "label": "yes"}]},
            "golden.0.input",
        ),
        ({"golden": [{"input": 3, "label": "yes"}]}, "golden.0.input: the input must be a text"),
        ({"label_scoring": "max"}, "label_scoring"),
    ],
)
def test_an_unsound_manifest_is_refused_in_a_sentence(fields, reason):
    with pytest.raises(ValidationError) as raised:
        Ensemble.model_validate(manifest(**fields))
    sentence = explain(raised.value)
    assert reason in sentence
    assert "\n" not in sentence


def test_a_golden_image_may_be_spelled_as_in_requests() -> None:
    asked = {"input": {"image": "DATA:image/png;base64,aGk="}, "label": "yes"}
    assert Ensemble.model_validate(manifest(golden=[asked])).golden[0].label == "yes"


@pytest.mark.parametrize("path", ["../x.json", "/etc/x.json", "fusion/../../x", "a//b", "a\\b", ""])
def test_parameters_stay_below_the_bundle(path):
    stack = {"method": "stack", "model": "logistic_regression", "parameters": path}
    with pytest.raises(ValidationError, match="below the bundle"):
        Ensemble.model_validate(manifest(fusion=stack))


@pytest.mark.parametrize(
    ("extract", "reason"),
    [
        ({"regex": "("}, "not a regular expression"),
        ({"regex": "(a)(?P<last>b)", "group": 3}, "no group 3; it has 0, 1, 2, last"),
        ({"regex": "(a)", "group": "last"}, "no group 'last'"),
        ({"regex": ""}, "at least 1 character"),
    ],
)
def test_an_extraction_rule_must_compile(extract, reason):
    vote = {"method": "vote", "extract": extract}
    with pytest.raises(ValidationError, match=reason):
        Ensemble.model_validate(manifest(task="generation", labels=None, fusion=vote))


def test_a_label_that_is_given_twice_is_found_among_many():
    labels = [f"label {number}" for number in range(100_000)]
    began = time.perf_counter()
    with pytest.raises(ValueError, match="'label 7' is given twice"):
        Ensemble.model_validate(manifest(labels=[*labels, "label 7"]))
    assert time.perf_counter() - began < 10, "every pair was compared"

"""The answer of each task has the fields of its task, and no others."""

import json
from typing import Any

import httpx
import pytest

from choir_client import (
    ClassificationPrediction,
    InvalidAnswer,
    MultilabelPrediction,
    RegressionPrediction,
)
from tests.clients.choir_client.conftest import FakeServer

REF = {"adapter": "a", "digest": "sha256:" + "0" * 64}


def _answer(*items: dict[str, Any], **fields: Any) -> httpx.Response:
    data = [{"index": index, **item} for index, item in enumerate(items)]
    return httpx.Response(
        200, json={"object": "list", "model": "e@1", "data": data, "usage": {}, **fields}
    )


MULTILABEL = (
    {
        "labels": ["late", "lost"],
        "probabilities": {"late": 0.9, "lost": 0.6, "paid": 0.1},
        "entropy": 1.1,
        "disagreement": 0.2,
        "members": [{"name": "a", "adapters": [REF], "labels": [], "probabilities": {"late": 0.4}}],
    },
    {"labels": [], "probabilities": {"late": 0.1, "lost": 0.1, "paid": 0.1}},
)


def test_the_labels_of_a_multilabel_answer_are_its_sets(client: Any, server: FakeServer) -> None:
    server.answer(_answer(*MULTILABEL))
    answer = client.predict("topics", ["x", "y"])

    assert isinstance(answer, MultilabelPrediction)
    assert answer.labels == [["late", "lost"], []]
    assert answer.data[0].probabilities["lost"] == 0.6
    assert answer.data[0].members[0].labels == []
    assert answer.data[0].members[0].adapters[0].adapter == "a"
    assert {"label", "value", "std"} & set(type(answer.data[0]).model_fields) == set()
    with pytest.raises(AttributeError, match=r"answers with labels: read \.labels"):
        _ = answer.values


def test_the_values_of_a_regression_answer_are_numbers(client: Any, server: FakeServer) -> None:
    member = {"name": "a", "adapters": [], "value": 2.5}
    server.answer(_answer({"value": 3, "std": 0.5, "members": [member]}, {"value": -1.5}))
    answer = client.predict("price", ["x", "y"])

    assert isinstance(answer, RegressionPrediction)
    assert answer.values == [3.0, -1.5]
    assert (answer.data[0].std, answer.data[1].std) == (0.5, None)
    assert answer.data[0].members[0].value == 2.5
    assert {"label", "labels", "probabilities"} & set(type(answer.data[0]).model_fields) == set()
    with pytest.raises(AttributeError, match=r"answers with values: read \.values"):
        _ = answer.labels


def test_the_labels_of_a_classification_answer_are_one_each(
    client: Any, server: FakeServer
) -> None:
    server.answer(_answer({"label": "late", "probabilities": {"late": 0.8, "lost": 0.2}}))
    answer = client.predict("intents", ["x"])

    assert isinstance(answer, ClassificationPrediction)
    assert answer.labels == ["late"]
    assert {"labels", "value"} & set(type(answer.data[0]).model_fields) == set()


def test_a_field_that_a_newer_server_adds_is_kept_at_every_level(
    client: Any, server: FakeServer
) -> None:
    server.answer(_answer({**MULTILABEL[0], "members_asked": 2}, absent_members=["b"]))
    answer = client.predict("topics", ["x"])

    assert answer.data[0].members_asked == 2
    assert answer.absent_members == ["b"]


def test_a_large_multilabel_batch_is_one_answer(client: Any, server: FakeServer) -> None:
    def parts(request: httpx.Request) -> httpx.Response:
        texts = json.loads(request.content)["input"]
        return _answer(*({"labels": [text], "probabilities": {text: 1.0}} for text in texts))

    server.answer(parts)
    texts = [str(number) for number in range(1500)]
    answer = client.predict("topics", texts)

    assert isinstance(answer, MultilabelPrediction)
    assert answer.labels == [[text] for text in texts]


@pytest.mark.parametrize("item", [{}, {"label": None}, {"labels": "late"}, {"value": "three"}])
def test_an_answer_without_the_field_of_its_task_is_none_of_choirs(
    client: Any, server: FakeServer, item: dict[str, Any]
) -> None:
    server.answer(_answer(item))
    with pytest.raises(InvalidAnswer):
        client.predict("intents", ["x"])

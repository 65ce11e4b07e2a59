"""`GET /v1/models`."""

from typing import Any

import pytest
from openai.types import Model

from serve.manifest import Ensemble
from tests.serve.gateway.conftest import Gateway, Start, refused
from tests.serve.gateway.fakes import desired, ensemble, held


async def test_every_name_of_a_model_is_listed(gateway: Gateway) -> None:
    listing = (await gateway.http.get("/v1/models")).json()
    assert listing["object"] == "list"
    roots = {entry["id"]: entry["root"] for entry in listing["data"]}
    assert roots["intents"] == roots["intents@3"] == "intents@3"
    assert roots["intents/a"] == "intents@3/a"
    assert {"intents@2", "replies", "replies@1", "replies/a", "replies/b"} <= set(roots)
    for entry in listing["data"]:
        assert Model.model_validate(entry, strict=True).object == "model"


async def test_one_model(gateway: Gateway) -> None:
    for name in ("intents", "intents@2", "intents/a"):
        response = await gateway.http.get(f"/v1/models/{name}")
        assert (response.status_code, response.json()["id"]) == (200, name)
    refused(await gateway.http.get("/v1/models/nobody"), 404, "nobody")
    refused(await gateway.http.get("/v1/models/intents/z"), 404, "z")


@pytest.mark.parametrize(
    ("task", "fusion", "methods"),
    [
        ("classification", {"method": "vote"}, ["vote", "average", "weighted_average"]),
        (
            "classification",
            {"method": "average", "model": "logistic_regression", "parameters": "fusion/x.json"},
            ["average", "weighted_average", "vote", "stack"],
        ),
        (
            "classification",
            {"method": "gate", "model": "gate", "parameters": "fusion/x.json"},
            ["gate", "average", "weighted_average", "vote"],
        ),
        (
            "generation",
            {"method": "average"},
            ["average", "weighted_average", "product", "vote", "mbr"],
        ),
    ],
)
async def test_a_model_says_which_methods_a_request_may_choose(
    start: Start, task: str, fusion: dict[str, str], methods: list[str]
) -> None:
    whole = ensemble(task=task).model_dump(exclude_none=True) | {"fusion": fusion}
    gateway = await start(desired(held(Ensemble.model_validate(whole))))
    models = {each["id"]: each for each in await listed(gateway)}
    assert models["intents"]["methods"] == models["intents@3"]["methods"] == methods
    assert models["intents"]["members"] == ["a", "b"]
    assert (models["intents/b"]["methods"], models["intents/b"]["members"]) == ([], ["b"])


@pytest.mark.parametrize(
    ("task", "template", "pairs"),
    [
        ("classification", "{text} and {text_pair}:", True),
        ("classification", "{text}\nIntent:", False),
        ("classification", "{text}", None),
        ("generation", "{text}", False),
    ],
)
async def test_a_model_says_whether_it_reads_pairs_where_its_template_does(
    start: Start, task: str, template: str, pairs: bool | None
) -> None:
    whole = ensemble(task=task).model_dump(exclude_none=True) | {"template": template}
    gateway = await start(desired(held(Ensemble.model_validate(whole))))
    assert {each["pairs"] for each in await listed(gateway)} == {pairs}


async def listed(gateway: Gateway) -> list[dict[str, Any]]:
    data: list[dict[str, Any]] = (await gateway.http.get("/v1/models")).json()["data"]
    return data

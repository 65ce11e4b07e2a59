"""`GET /v1/models`."""

from openai.types import Model

from tests.serve.gateway.conftest import Gateway, refused


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

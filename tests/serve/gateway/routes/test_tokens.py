"""`/tokenize` and `/detokenize` with a faked engine: what the engine is asked, and what is refused before."""

from typing import Any

import pytest

from serve.engine.interface import GenerateCall
from tests.serve.gateway.conftest import Gateway, refused


@pytest.mark.parametrize(
    ("route", "body"),
    [
        ("tokenize", {"prompt": "hello", "return_token_strs": True}),
        ("tokenize", {"messages": [{"role": "user", "content": "hello"}]}),
        ("detokenize", {"tokens": [1, 2]}),
    ],
)
async def test_the_engine_is_asked_with_the_clients_body(
    gateway: Gateway, route: str, body: dict[str, Any]
) -> None:
    body = {"model": "replies/a", **body}
    answer = await gateway.http.post(
        f"/{route}", json={**body, "stream": True}, headers={"x-request-id": "mine"}
    )
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    assert answer.headers["x-choir-model"] == "replies@1/a"
    assert gateway.engines.calls == [
        GenerateCall("replies@1", route, body, "mine", member="a", trace_headers={})  # type: ignore[arg-type]
    ]


@pytest.mark.parametrize("route", ["tokenize", "detokenize"])
async def test_a_request_names_its_model(gateway: Gateway, route: str) -> None:
    for body in ({}, {"model": 3}, {"model": None}):
        error = refused(await gateway.http.post(f"/{route}", json=body), 400, "model")
        assert error["param"] == "model"
    assert gateway.engines.calls == []

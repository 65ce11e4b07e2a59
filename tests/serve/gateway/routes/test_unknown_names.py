"""A misspelt model or ensemble is answered with the name that was probably meant, on every route that takes one."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.serve.gateway.conftest import refused
from tests.serve.gateway.running import running

ASKED: list[tuple[str, str, Any]] = [
    ("POST", "/v1/predict", {"model": "intentz", "input": "x"}),
    ("POST", "/v1/completions", {"model": "intentz", "prompt": "x"}),
    ("POST", "/v1/chat/completions", {"model": "intentz", "messages": []}),
    ("POST", "/v1/responses", {"model": "intentz", "input": "x"}),
    ("POST", "/tokenize", {"model": "intentz", "prompt": "x"}),
    ("POST", "/detokenize", {"model": "intentz", "tokens": [1]}),
    ("GET", "/v1/models/intentz", None),
    ("GET", "/v1/ensembles/intentz", None),
    ("POST", "/v1/ensembles/intentz/swap", {"version": 1}),
    ("POST", "/v1/ensembles/intentz/rollback", {}),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running(tmp_path_factory.mktemp("names")) as url:
        yield url


@pytest.mark.parametrize(("method", "path", "body"), ASKED, ids=[each[1] for each in ASKED])
def test_a_name_that_is_almost_right_is_suggested(
    server: str, method: str, path: str, body: Any
) -> None:
    answer = httpx.request(method, server + path, json=body)
    assert "Did you mean 'intents'?" in refused(answer, 404, "intentz")["message"]

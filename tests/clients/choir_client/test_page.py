"""docs/client.md: its examples run and print what stands behind them, and it has every public method."""

import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from choir_client import AsyncChoir, Choir

PAGE = Path(__file__).parents[3] / "docs" / "client.md"
ROLLOUT = {"id": "r1", "state": "done", "from": 3, "to": 4, "ensemble": "intents"}
REF = {"adapter": "intents-a", "digest": "sha256:" + "0" * 64}
ENSEMBLE = {
    "name": "intents",
    "active_version": 3,
    "members": [{"name": "a", "adapters": [REF]}],
}
AUDIT = {
    "at": "2026-11-29T16:09:05Z",
    "actor": "alice",
    "action": "swap",
    "ensemble": "intents",
    "outcome": "done",
}
TEXT = "It is on its way."
INTENTS = {
    "where is my parcel?": {
        "label": "track_order",
        "probabilities": {"track_order": 0.94, "cancel_order": 0.06},
        "entropy": 0.23,
        "disagreement": 0.01,
    },
    "cancel it": {"label": "cancel_order", "probabilities": {"cancel_order": 0.9}},
}
TOPICS = {
    "it is late and the box is torn": {
        "labels": ["delivery", "damage"],
        "probabilities": {"delivery": 0.9, "damage": 0.6, "payment": 0.1},
    },
    "hello": {"labels": [], "probabilities": {"delivery": 0.1, "damage": 0.2, "payment": 0.1}},
}
SAID: dict[str, dict[str, Any]] = {
    "intents": INTENTS,
    "topics": TOPICS,
    "urgency": {"I need it today": {"value": 0.8, "std": 0.05}},
}
FIXED: dict[str, Any] = {
    "GET /health": {"status": "ok"},
    "GET /ready": {"status": "ready"},
    "GET /v1/models": {"data": [{"id": each} for each in ("intents", "intents@3", "intents/a")]},
    "GET /v1/ensembles": {"data": [ENSEMBLE]},
    "GET /v1/ensembles/intents": ENSEMBLE,
    "POST /v1/ensembles/intents/rollback": ROLLOUT,
    "GET /v1/rollouts": {"data": [ROLLOUT, {**ROLLOUT, "id": "r2"}], "audit": [AUDIT]},
    "GET /v1/rollouts/r1": ROLLOUT,
    "POST /v1/rollouts/r1/promote": ROLLOUT,
    "POST /v1/prune": {
        "dry_run": True,
        "versions": [{"ensemble": "intents", "version": 1, "created": "2026-10-01T00:00:00Z"}],
        "adapters": [{**REF, "bytes": 2_500_000}],
    },
    "POST /v1/rollouts/r2/abort": {**ROLLOUT, "id": "r2", "state": "aborted"},
}


def _answer(request: httpx.Request) -> httpx.Response:
    route = f"{request.method} {request.url.path}"
    body = json.loads(request.content) if request.content else {}
    if route == "GET /metrics":
        return httpx.Response(200, text="# TYPE choir_requests_total counter\n")
    if route == "POST /v1/predict":
        return httpx.Response(200, json=_predicted(body))
    if route == "POST /v1/ensembles/intents/swap":
        if body.get("expected_version") == 2:
            refused = {"message": "version 3 is active, not 2", "type": "conflict"}
            return httpx.Response(409, json={"error": refused})
        return httpx.Response(200, json=ROLLOUT)
    if route in ("POST /v1/completions", "POST /v1/chat/completions"):
        return _written(route.endswith("/chat/completions"), body.get("stream", False))
    return httpx.Response(200, json=FIXED[route])


def _predicted(body: dict[str, Any]) -> dict[str, Any]:
    texts = [body["input"]] if isinstance(body["input"], str) else body["input"]
    data = [{"index": n, **SAID[body["model"]][text]} for n, text in enumerate(texts)]
    if body.get("return_members"):
        data[0]["members"] = [
            {"name": "a", "adapters": [REF], "label": data[0]["label"], "probabilities": {}}
        ]
    return {"object": "list", "model": f"{body['model']}@3", "data": data, "usage": {}}


def _written(chat: bool, stream: bool) -> httpx.Response:
    def choice(text: str) -> dict[str, Any]:
        key = "delta" if stream else "message"
        said = {key: {"content": text}} if chat else {"text": text}
        return {"model": "replies@1", "choices": [{"index": 0, **said}]}

    if not stream:
        return httpx.Response(200, json=choice(TEXT))
    parts = [json.dumps(choice(part)) for part in re.split(r"(?= )", TEXT)]
    events = "".join(f"data: {part}\n\n" for part in [*parts, "[DONE]"])
    return httpx.Response(200, text=events, headers={"content-type": "text/event-stream"})


@pytest.fixture
def _fake_transport(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers every client's requests without a network."""

    async def answer(_: object, request: httpx.Request) -> httpx.Response:
        return _answer(request)

    monkeypatch.setattr(httpx.HTTPTransport, "handle_request", lambda _, request: _answer(request))
    monkeypatch.setattr(httpx.AsyncHTTPTransport, "handle_async_request", answer)


def _examples() -> Iterator[str]:
    return (
        match[1] for match in re.finditer(r"^```python\n(.*?)^```$", PAGE.read_text(), re.M | re.S)
    )


@pytest.mark.usefixtures("_fake_transport")
def test_the_examples_print_what_the_page_says(capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {}
    for number, example in enumerate(_examples()):
        exec(compile(example, f"{PAGE.name}, example {number}", "exec"), names)
        expected = re.findall(r"^ *print\(.*\)  # (.*)$", example, re.M)
        assert capsys.readouterr().out.splitlines() == expected


@pytest.mark.parametrize("client", [Choir, AsyncChoir])
def test_every_public_method_is_on_the_page(client: type) -> None:
    methods = {
        name
        for name, _ in inspect.getmembers(client, inspect.isfunction)
        if not name.startswith("_")
    }
    code = "".join(_examples())
    called = {name for name in methods if f".{name}(" in code}

    # `async with` is the example of `aclose`.
    assert methods - called <= {"aclose"}
    assert all(f"`{name}`" in PAGE.read_text() or name in called for name in methods)

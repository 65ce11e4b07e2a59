"""The Python client: requests as the API defines them, answers as types, failures as exceptions."""

import json
import subprocess
import sys
from typing import Any

import httpx
import pytest

import choir_client
from choir_client import (
    APIError,
    BadRequest,
    Choir,
    ChoirError,
    Conflict,
    ConnectionFailed,
    Forbidden,
    InvalidAnswer,
    NotFound,
    RateLimited,
    TooLarge,
    Unauthorized,
    Unavailable,
)
from serve.config import Settings

from .conftest import FakeServer


def prediction(request: httpx.Request) -> httpx.Response:
    """What a server answers: label = the text, model = what `intents` resolves to."""
    body = json.loads(request.content)
    texts = [body["input"]] if isinstance(body["input"], str) else body["input"]
    data = [
        {"index": i, "label": text, "probabilities": {text: 1.0}, "entropy": 0.0}
        for i, text in enumerate(texts)
    ]
    model = body["model"] if "@" in body["model"] else f"{body['model']}@3"
    usage = {"prompt_tokens": len(texts), "member_tokens": 3 * len(texts)}
    return httpx.Response(
        200, json={"object": "list", "model": model, "data": data, "usage": usage}
    )


def error(status: int, message: str = "no", **headers: str) -> httpx.Response:
    body = {"error": {"message": message, "type": "some_error", "param": "model", "code": "c"}}
    return httpx.Response(status, json=body, headers=headers)


ROLLOUT = {"id": "r1", "state": "done", "from": 3, "to": 4, "replicas": 2, "reason": None}


class TestPredict:
    def test_sends_the_contract_and_reads_the_answer(self, client: Any, server: FakeServer) -> None:
        server.answer(prediction)
        answer = client.predict(
            "intents", ["a", "b"], fusion={"method": "vote"}, return_members=True
        )
        (request,) = server.requests
        assert request.method == "POST"
        assert request.url == "http://choir.test/v1/predict"
        assert request.headers["authorization"] == "Bearer secret"
        assert server.bodies() == [
            {
                "model": "intents",
                "input": ["a", "b"],
                "fusion": {"method": "vote"},
                "return_members": True,
            }
        ]
        assert answer.model == "intents@3"
        assert answer.labels == ["a", "b"]
        assert answer.usage.member_tokens == 6

    def test_splits_a_large_batch_keeps_order_and_pins_the_version(
        self, client: Any, server: FakeServer
    ) -> None:
        texts = [f"text {i}" for i in range(2500)]
        server.answer(prediction)
        answer = client.predict("intents", texts)
        assert [len(body["input"]) for body in server.bodies()] == [1024, 1024, 452]
        assert [body["model"] for body in server.bodies()] == ["intents", "intents@3", "intents@3"]
        assert answer.labels == texts
        assert [item.index for item in answer.data] == list(range(2500))
        assert answer.usage.prompt_tokens == 2500
        assert answer.usage.member_tokens == 7500

    def test_fields_of_a_newer_server_are_kept(self, client: Any, server: FakeServer) -> None:
        body = json.loads(
            prediction(httpx.Request("POST", "/", json={"model": "i", "input": "a"})).content
        )
        server.answer(httpx.Response(200, json={**body, "experiment": "blue"}))
        assert client.predict("i", "a").experiment == "blue"


def stream(content: bytes) -> httpx.Response:
    return httpx.Response(
        200, content=content, headers={"content-type": "text/event-stream; charset=utf-8"}
    )


class TestStreaming:
    EVENTS = (
        b": keep-alive\n\n"
        b'data: {"model":"replies@1","choices":[{"index":0,"delta":{"role":"assistant"}}]}\n\n'
        b'data: {"model":"replies@1","choices":[{"index":0,"delta":{"content":"Hello"}}]}\n\n'
        b'data: {"model":"replies@1","choices":[{"index":0,"delta":{"content":" you"}}]}\n\n'
        b'data: {"model":"replies@1","choices":[],"usage":{"prompt_tokens":3}}\n\n'
    )

    def test_yields_the_chunks(self, client: Any, server: FakeServer) -> None:
        server.answer(stream(self.EVENTS + b"data: [DONE]\n\n"))
        chunks = list(client.stream_chat("replies", [{"role": "user", "content": "hi"}]))
        assert "".join(chunk.text for chunk in chunks) == "Hello you"
        assert chunks[-1].usage.prompt_tokens == 3
        assert server.bodies()[0]["stream"] is True

    @pytest.mark.parametrize("line_end", [b"\n", b"\r\n", b"\r"])
    def test_a_text_may_hold_what_unicode_calls_the_end_of_a_line(
        self, client: Any, server: FakeServer, line_end: bytes
    ) -> None:
        """JSON escapes none of these; vLLM's pydantic writes them as they are."""
        text = "one\u2028two\u2029three\u0085four\x1cfive\x0bsix\x0cseven"
        choices = [{"index": 0, "delta": {"content": text}}]
        chunk = json.dumps({"model": "replies@1", "choices": choices}, ensure_ascii=False)
        events = f"data: {chunk}\n\ndata: [DONE]\n\n".encode()
        server.answer(stream(events.replace(b"\n", line_end)))
        assert [chunk.text for chunk in client.stream_chat("replies", [])] == [text]

    def test_a_stream_that_breaks_off_is_an_error(self, client: Any, server: FakeServer) -> None:
        server.answer(stream(self.EVENTS))
        with pytest.raises(ConnectionFailed, match="before the answer was complete"):
            list(client.stream_chat("replies", []))

    def test_an_error_inside_the_stream_is_raised(self, client: Any, server: FakeServer) -> None:
        event = b'data: {"error":{"message":"gone","type":"x","code":503}}\n\n'
        server.answer(stream(self.EVENTS + event))
        with pytest.raises(Unavailable, match="gone"):
            list(client.stream_chat("replies", []))

    def test_a_refused_stream_is_an_api_error(self, client: Any, server: FakeServer) -> None:
        server.answer(error(404, "no such model"))
        with pytest.raises(NotFound, match="no such model"):
            list(client.stream_complete("nobody", "hi"))


class TestErrors:
    @pytest.mark.parametrize(
        ("status", "kind"),
        [
            (400, BadRequest),
            (401, Unauthorized),
            (403, Forbidden),
            (404, NotFound),
            (409, Conflict),
            (413, TooLarge),
            (429, RateLimited),
            (503, Unavailable),
            (418, APIError),
        ],
    )
    def test_each_status_has_its_exception(
        self, client: Any, server: FakeServer, status: int, kind: type[APIError]
    ) -> None:
        server.answer(error(status, "a sentence", **{"x-request-id": "id-1"}))
        with pytest.raises(APIError) as caught:
            client.swap("intents", version=2)
        assert type(caught.value) is kind
        assert str(caught.value) == "a sentence"
        assert (caught.value.status, caught.value.param, caught.value.code) == (
            status,
            "model",
            "c",
        )
        assert caught.value.request_id == "id-1"

    def test_a_proxys_page_is_not_shown(self, client: Any, server: FakeServer) -> None:
        server.answer(httpx.Response(502, text="<html>Bad Gateway</html>"))
        with pytest.raises(Unavailable, match="answered 502"):
            client.models()

    def test_an_answer_that_is_not_choirs(self, client: Any, server: FakeServer) -> None:
        server.answer(httpx.Response(200, text="<html>hello</html>"))
        with pytest.raises(InvalidAnswer, match="/v1/models"):
            client.models()

    @pytest.mark.parametrize("url", ["ftp://host", "localhost:8000", "http://[::1"])
    def test_a_wrong_url_is_refused_at_once(self, url: str) -> None:
        with pytest.raises(ChoirError, match=r"not a (URL|server's address)"):
            Choir(url)


class TestRetries:
    @pytest.mark.parametrize(
        "failure", [httpx.ConnectError("refused"), httpx.ReadError("cut"), error(503), error(429)]
    )
    def test_a_prediction_is_tried_again(
        self, client: Any, server: FakeServer, failure: Any
    ) -> None:
        server.answer(failure, failure, prediction)
        assert client.predict("intents", "a").labels == ["a"]
        assert len(server.requests) == 3

    def test_the_tries_are_bounded(self, client: Any, server: FakeServer) -> None:
        server.answer(httpx.ConnectError("refused"))
        with pytest.raises(ConnectionFailed, match=r"http://choir\.test: refused"):
            client.predict("intents", "a")
        assert len(server.requests) == 3

    def test_a_wait_longer_than_the_callers_patience_ends_them(
        self, client: Any, server: FakeServer
    ) -> None:
        server.answer(error(429, **{"retry-after": "3600"}))
        with pytest.raises(RateLimited) as caught:
            client.predict("intents", "a")
        assert caught.value.retry_after == 3600
        assert len(server.requests) == 1

    def test_retry_after_is_honoured(self) -> None:
        retries = choir_client.Retries(first_pause=0.1)
        assert retries.pause(1, RateLimited("full", status=429, retry_after=2.5)) == 2.5

    @pytest.mark.parametrize("failure", [httpx.ReadError("cut"), error(503)])
    def test_a_swap_is_never_sent_twice(
        self, client: Any, server: FakeServer, failure: Any
    ) -> None:
        server.answer(failure)
        with pytest.raises(ChoirError):
            client.swap("intents", members={"a": "file:///data/a"})
        with pytest.raises(ChoirError):
            client.rollback("intents")
        assert len(server.requests) == 2

    def test_bad_requests_are_not_repeated(self, client: Any, server: FakeServer) -> None:
        server.answer(error(400))
        with pytest.raises(BadRequest):
            client.predict("intents", "a")
        assert len(server.requests) == 1


class TestOperations:
    def test_swap(self, client: Any, server: FakeServer) -> None:
        server.answer(httpx.Response(200, json=ROLLOUT))
        rollout = client.swap("intents", members={"a": "file:///data/a"}, expected_version=3)
        (request,) = server.requests
        assert request.url == "http://choir.test/v1/ensembles/intents/swap?wait=true"
        assert server.bodies() == [{"members": {"a": "file:///data/a"}, "expected_version": 3}]
        assert (rollout.from_version, rollout.to_version, rollout.finished) == (3, 4, True)

    def test_swap_without_waiting(self, client: Any, server: FakeServer) -> None:
        server.answer(httpx.Response(202, json={**ROLLOUT, "state": "preparing"}))
        assert not client.swap("intents", version=4, wait=False).finished
        assert server.requests[0].url.query == b""

    @pytest.mark.parametrize("what", [{}, {"version": 1, "members": {"a": "file:///a"}}])
    def test_swap_takes_one_kind_of_candidate(self, client: Any, what: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match="exactly one"):
            client.swap("intents", **what)

    def test_rollback(self, client: Any, server: FakeServer) -> None:
        server.answer(httpx.Response(200, json=ROLLOUT))
        client.rollback("intents", to=2)
        assert server.requests[0].url.path == "/v1/ensembles/intents/rollback"
        assert server.bodies() == [{"to": 2}]

    def test_a_canary_is_waited_for_without_a_long_request(
        self, client: Any, server: FakeServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(choir_client.client, "POLL_SECONDS", 0.0)
        states = ["preparing", "canarying", "committing", "draining"]
        server.answer(*(httpx.Response(200, json={**ROLLOUT, "state": each}) for each in states))
        strategy = {"kind": "canary", "share": 0.2}
        rollout = client.swap("intents", version=4, strategy=strategy)
        assert rollout.state == "draining"
        assert [request.url.path for request in server.requests] == [
            "/v1/ensembles/intents/swap",
            *["/v1/rollouts/r1"] * 3,
        ]
        assert server.requests[0].url.query == b""
        assert json.loads(server.requests[0].content)["strategy"] == strategy

    def test_a_canary_that_is_aborted_raises(
        self, client: Any, server: FakeServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(choir_client.client, "POLL_SECONDS", 0.0)
        aborted = {**ROLLOUT, "state": "aborted", "reason": "6 of 10 requests failed"}
        server.answer(httpx.Response(202, json=aborted))
        with pytest.raises(choir_client.RolloutAborted, match="6 of 10 requests failed") as caught:
            client.swap("intents", version=4, strategy={"kind": "canary"})
        assert caught.value.rollout.state == "aborted"

    def test_promote_and_abort(self, client: Any, server: FakeServer) -> None:
        counts = {"requests": 5, "errors": 1, "mean_ms": 12.5}
        trial = {
            "share": 0.1,
            "candidate": counts,
            "agreement": 0.5,
            "gates": {"max_seconds": None},
        }
        server.answer(httpx.Response(200, json={**ROLLOUT, "trial": trial}))
        rollout = client.promote("r1")
        assert rollout.trial.candidate.errors == 1
        client.promote("r1", wait=False)
        client.abort("r1")
        assert [
            str(request.url).removeprefix("http://choir.test") for request in server.requests
        ] == [
            "/v1/rollouts/r1/promote?wait=true",
            "/v1/rollouts/r1/promote",
            "/v1/rollouts/r1/abort",
        ]
        assert all(request.content == b"{}" for request in server.requests)

    def test_names_cannot_leave_their_route(self, client: Any, server: FakeServer) -> None:
        server.answer(error(404))
        with pytest.raises(NotFound):
            client.ensemble("../rollouts")
        assert server.requests[0].url.raw_path == b"/v1/ensembles/..%2Frollouts"

    def test_lists(self, client: Any, server: FakeServer) -> None:
        server.answer(
            httpx.Response(200, json={"object": "list", "data": [{"id": "intents"}]}),
            httpx.Response(200, json={"data": [{"name": "intents", "active_version": 3}]}),
            httpx.Response(200, json={"data": [ROLLOUT]}),
        )
        assert [model.id for model in client.models()] == ["intents"]
        assert [each.active_version for each in client.ensembles()] == [3]
        assert [each.id for each in client.rollouts()] == ["r1"]

    def test_not_ready_is_an_answer_and_not_an_error(self, client: Any, server: FakeServer) -> None:
        server.answer(error(503), httpx.Response(200, json={"status": "ready"}))
        assert not client.ready().ok
        assert client.ready().ok


class TestPatience:
    def limits(self, **options: Any) -> list[float | None]:
        """How long an answer to a question and to three changes is waited for, in seconds."""
        server = FakeServer()
        server.answer(
            httpx.Response(200, json={"data": [ROLLOUT]}), httpx.Response(200, json=ROLLOUT)
        )
        with Choir("http://choir", transport=httpx.MockTransport(server), **options) as client:
            client.rollouts()
            client.swap("intents", version=2)
            client.rollback("intents", wait=False)
            client.promote("r1")
        return [request.extensions["timeout"]["read"] for request in server.requests]

    def test_a_change_is_waited_for_longer_than_a_server_fetches_and_prepares(self) -> None:
        fetching, preparing = (
            Settings.model_fields[name].default
            for name in ("fetch_timeout_seconds", "prepare_timeout_seconds")
        )
        asked, *changes = self.limits()
        assert asked == 120
        assert all(limit is not None and limit > fetching + preparing for limit in changes)

    def test_a_limit_of_the_callers_own_is_kept(self) -> None:
        assert self.limits(timeout=5) == [5, 5, 5, 5]

    def test_who_gives_up_on_a_change_is_told_that_it_goes_on(
        self, client: Any, server: FakeServer
    ) -> None:
        server.answer(httpx.ReadTimeout("timed out"))
        with pytest.raises(ConnectionFailed, match="timed out; the change goes on"):
            client.swap("intents", version=2)
        server.answer(httpx.ConnectError("refused"))
        with pytest.raises(ConnectionFailed, match=r"refused$"):
            client.swap("intents", version=2)


class TestSurface:
    def test_everything_exported_exists_and_nothing_else_is_public(self) -> None:
        modules = {"client", "exceptions", "models"}
        public = {name for name in vars(choir_client) if not name.startswith("_")}
        assert public - modules == set(choir_client.__all__)

    def test_both_clients_have_the_same_methods(self) -> None:
        def methods(client: type) -> set[str]:
            return {name for name in vars(client) if not name.startswith("_")} - {"close", "aclose"}

        assert methods(Choir) == methods(choir_client.AsyncChoir)

    def test_every_error_is_a_choir_error(self) -> None:
        errors = [
            getattr(choir_client, name)
            for name in choir_client.__all__
            if isinstance(getattr(choir_client, name), type)
            and issubclass(getattr(choir_client, name), Exception)
        ]
        assert len(errors) >= 12
        assert all(issubclass(each, ChoirError) for each in errors)

    def test_needs_httpx_and_pydantic_only(self) -> None:
        heavy = ["serve", "training", "numpy", "ray", "torch", "transformers", "vllm"]
        code = f"import choir_client, sys; print([m for m in {heavy} if m in sys.modules])"
        run = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
        assert run.stdout.strip() == "[]"

    def test_settings_come_from_the_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("CHOIR_URL", "http://elsewhere:9000/")
        monkeypatch.setenv("CHOIR_TOKEN", "from-env")
        seen: list[httpx.Request] = []

        def answer(request: httpx.Request) -> httpx.Response:
            seen.append(request)
            return httpx.Response(200, json={"data": []})

        with Choir(transport=httpx.MockTransport(answer)) as choir:
            choir.models()
        assert seen[0].url == "http://elsewhere:9000/v1/models"
        assert seen[0].headers["authorization"] == "Bearer from-env"

"""Exceptions, retries and timeouts of the client."""

from typing import Any

import httpx
import pytest

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
    Retries,
    TooLarge,
    Unauthorized,
    Unavailable,
)
from serve.config.settings import Settings
from tests.clients.choir_client.conftest import ROLLOUT, FakeServer, error, prediction


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

    def test_the_page_of_a_proxy_is_not_part_of_the_message(
        self, client: Any, server: FakeServer
    ) -> None:
        server.answer(httpx.Response(502, text="<html>Bad Gateway</html>"))
        with pytest.raises(Unavailable, match="answered 502"):
            client.models()

    @pytest.mark.parametrize(
        ("answer", "kind"),
        [
            (httpx.Response(500, text="Internal Server Error"), Unavailable),
            (httpx.Response(500, json={"detail": "x"}), Unavailable),
            (httpx.Response(599, text=""), Unavailable),
            (error(500), APIError),
            (httpx.Response(418, text="a teapot"), APIError),
        ],
    )
    def test_a_fault_that_is_not_choirs_is_a_proxys(
        self, client: Any, server: FakeServer, answer: httpx.Response, kind: type[APIError]
    ) -> None:
        """HAProxy says 500 in plain text while no gateway lives."""
        server.answer(answer)
        with pytest.raises(APIError) as caught:
            client.swap("intents", version=2)
        assert type(caught.value) is kind

    def test_an_answer_outside_the_api_is_an_error(self, client: Any, server: FakeServer) -> None:
        server.answer(httpx.Response(200, text="<html>hello</html>"))
        with pytest.raises(InvalidAnswer, match="/v1/models"):
            client.models()

    @pytest.mark.parametrize("url", ["ftp://host", "localhost:8000", "http://[::1"])
    def test_a_wrong_url_is_refused_at_once(self, url: str) -> None:
        with pytest.raises(ChoirError, match=r"not a (URL|server's address)"):
            Choir(url)


class TestRetries:
    @pytest.mark.parametrize(
        "failure",
        [
            httpx.ConnectError("refused"),
            httpx.ReadError("cut"),
            error(503),
            error(429),
            httpx.Response(500, text="Internal Server Error"),
        ],
    )
    def test_a_prediction_is_sent_again(
        self, client: Any, server: FakeServer, failure: Any
    ) -> None:
        server.answer(failure, failure, prediction)
        assert client.predict("intents", "a").labels == ["a"]
        assert len(server.requests) == 3

    def test_a_call_is_sent_at_most_as_often_as_the_retries_allow(
        self, client: Any, server: FakeServer
    ) -> None:
        server.answer(httpx.ConnectError("refused"))
        with pytest.raises(ConnectionFailed, match=r"http://choir\.test: refused"):
            client.predict("intents", "a")
        assert len(server.requests) == 3

    def test_a_retry_after_over_the_longest_pause_ends_the_retries(
        self, client: Any, server: FakeServer
    ) -> None:
        server.answer(error(429, **{"retry-after": "3600"}))
        with pytest.raises(RateLimited) as caught:
            client.predict("intents", "a")
        assert caught.value.retry_after == 3600
        assert len(server.requests) == 1

    def test_retry_after_replaces_the_pause(self) -> None:
        retries = Retries(first_pause=0.1)
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

    def test_a_bad_request_is_sent_once(self, client: Any, server: FakeServer) -> None:
        server.answer(error(400))
        with pytest.raises(BadRequest):
            client.predict("intents", "a")
        assert len(server.requests) == 1


class TestTimeouts:
    def timeouts(self, **options: Any) -> list[float | None]:
        """The read timeouts of one read and of three changes of version, in seconds."""
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

    def test_a_change_of_version_may_take_as_long_as_a_server_fetches_and_prepares(self) -> None:
        fetching, preparing = (
            Settings.model_fields[name].default
            for name in ("fetch_timeout_seconds", "prepare_timeout_seconds")
        )
        read, *changes = self.timeouts()
        assert read == 120
        assert all(limit is not None and limit > fetching + preparing for limit in changes)

    def test_a_timeout_of_the_caller_holds_for_all_calls(self) -> None:
        assert self.timeouts(timeout=5) == [5, 5, 5, 5]

    def test_a_timeout_of_a_change_says_that_the_server_may_go_on(
        self, client: Any, server: FakeServer
    ) -> None:
        server.answer(httpx.ReadTimeout("timed out"))
        with pytest.raises(
            ConnectionFailed, match="timed out; the server may have accepted the change"
        ):
            client.swap("intents", version=2)
        server.answer(httpx.ConnectError("refused"))
        with pytest.raises(ConnectionFailed, match=r"refused$"):
            client.swap("intents", version=2)

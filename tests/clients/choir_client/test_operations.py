"""Swaps, rollouts and lists: the requests that the client sends, and the answers that it returns."""

import json
from typing import Any

import httpx
import pytest

from choir_client import NotFound, RolloutAborted, Unavailable, _connection
from tests.clients.choir_client.conftest import ROLLOUT, FakeServer, error


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
    def test_a_swap_takes_exactly_one_kind_of_candidate(
        self, client: Any, what: dict[str, Any]
    ) -> None:
        with pytest.raises(ValueError, match="exactly one"):
            client.swap("intents", **what)

    def test_rollback(self, client: Any, server: FakeServer) -> None:
        server.answer(httpx.Response(200, json=ROLLOUT))
        client.rollback("intents", to=2)
        assert server.requests[0].url.path == "/v1/ensembles/intents/rollback"
        assert server.bodies() == [{"to": 2}]

    def test_the_end_of_a_canary_is_polled_for(
        self, client: Any, server: FakeServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(_connection, "POLL_SECONDS", 0.0)
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

    def test_an_aborted_canary_raises(
        self, client: Any, server: FakeServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(_connection, "POLL_SECONDS", 0.0)
        aborted = {**ROLLOUT, "state": "aborted", "reason": "6 of 10 requests failed"}
        server.answer(httpx.Response(202, json=aborted))
        with pytest.raises(RolloutAborted, match="6 of 10 requests failed") as caught:
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

    def test_a_name_with_slashes_cannot_reach_another_route(
        self, client: Any, server: FakeServer
    ) -> None:
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

    def test_all_pages_of_ensembles_are_read(self, client: Any, server: FakeServer) -> None:
        names = [f"e{number:03d}" for number in range(250)]

        def page(request: httpx.Request) -> httpx.Response:
            asked = request.url.params
            found = [name for name in names if name > asked.get("after", "")]
            some = found[: int(asked["limit"])]
            data = [{"name": name} for name in some]
            return httpx.Response(200, json={"data": data, "has_more": len(found) > len(some)})

        server.answer(page)
        assert [each.name for each in client.ensembles()] == names
        assert len(server.requests) == 3

    def test_prune(self, client: Any, server: FakeServer) -> None:
        files = [{"digest": "sha256:ab", "bytes": 3}]
        version = {"ensemble": "intents", "version": 1, "created": "2026-01-01T00:00:00Z"}
        answer = {"dry_run": True, "versions": [version], "adapters": files, "parameters": files}
        server.answer(httpx.Response(200, json=answer))

        found = client.prune()
        client.prune(keep_versions=5, keep_days=0.5, dry_run=False)

        assert (found.versions[0].version, found.bytes) == (1, 6)
        assert server.bodies() == [
            {"dry_run": True},
            {"keep_versions": 5, "keep_days": 0.5, "dry_run": False},
        ]

    def test_a_prune_that_removes_is_sent_once(self, client: Any, server: FakeServer) -> None:
        server.answer(error(503))
        with pytest.raises(Unavailable):
            client.prune(dry_run=False)
        assert len(server.requests) == 1

    def test_not_ready_is_an_answer_and_not_an_error(self, client: Any, server: FakeServer) -> None:
        proxys = httpx.Response(500, text="Internal Server Error")
        server.answer(error(503), proxys, httpx.Response(200, json={"status": "ready"}))
        assert not client.ready().ok
        assert not client.ready().ok
        assert client.ready().ok

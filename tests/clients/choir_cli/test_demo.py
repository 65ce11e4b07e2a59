"""The parts of the demo: the load, the scores, and the server process."""

import socket
from pathlib import Path

import pytest

from choir_cli.console import UsageError
from choir_cli.demo.load import Load
from choir_cli.demo.scoring import scores
from choir_cli.demo.server import Server, ServerFailed, require_free
from choir_client import Choir, ChoirError
from tests.clients.conftest import LocalServer

TEXTS = ["a", "b", "c", "d"]


def answer(model: str, label: str = "x") -> dict[str, object]:
    data = [{"index": i, "label": label, "probabilities": {label: 1.0}} for i in range(4)]
    return {"model": model, "data": data}


class TestLoad:
    def test_counts_answers_by_version(self, local_server: LocalServer) -> None:
        local_server.answers["POST /v1/predict"] = (200, answer("intents@1"))
        with Load(local_server.url, "intents", TEXTS) as load:
            load.wait_for(20)
            local_server.answers["POST /v1/predict"] = (200, answer("intents@2"))
            load.wait_for(20)
        assert set(load.versions) == {"intents@1", "intents@2"}
        assert load.failures == []
        assert load.requests == len(local_server.bodies) >= 40

    def test_counts_every_failure(self, local_server: LocalServer) -> None:
        local_server.answers["POST /v1/predict"] = (503, {"error": {"message": "no engine"}})
        with Load(local_server.url, "intents", TEXTS) as load:
            load.wait_for(5)
        assert set(load.failures) == {"no engine"}
        assert len(load.failures) == len(local_server.bodies)

    def test_gives_up_on_a_server_that_is_too_slow(self, local_server: LocalServer) -> None:
        local_server.answers["POST /v1/predict"] = (200, answer("intents@1"))
        with (
            pytest.raises(ChoirError, match="fewer than 1000000 requests"),
            Load(local_server.url, "intents", TEXTS) as load,
        ):
            load.wait_for(1_000_000, within=0.1)


def test_scores_members_alone_and_methods_fused(local_server: LocalServer) -> None:
    local_server.answers["POST /v1/predict"] = (200, answer("intents@1"))
    with Choir(local_server.url) as choir:
        found = list(scores(choir, "intents", ["a", "b"], ["vote"], TEXTS, ["x", "x", "x", "y"]))
    assert [(s.name, s.accuracy, s.passes) for s in found] == [
        ("a", 0.75, 1),
        ("b", 0.75, 1),
        ("vote", 0.75, 2),
    ]
    asked = {(body["model"], str(body.get("fusion"))) for body in local_server.bodies}
    assert asked == {
        ("intents/a", "None"),
        ("intents/b", "None"),
        ("intents", "{'method': 'vote'}"),
    }


class TestServer:
    def test_a_port_in_use_is_a_usage_error(self) -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            with pytest.raises(UsageError, match=rf"port {port} .* in use.*DEMO_PORT"):
                require_free(port)

    def test_the_error_of_a_server_that_cannot_start_is_quoted(self, tmp_path: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        server = Server(tmp_path / "no-bundle", port, tmp_path / "store", tmp_path / "log")
        with server, pytest.raises(ServerFailed, match="the server ended: choir: "):
            server.wait_until_ready()

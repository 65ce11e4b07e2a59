"""`choir predict` and `choir chat`: what they send and print."""

import json

import pytest

from tests.clients.choir_cli.conftest import ENSEMBLE, Choir
from tests.clients.conftest import LocalServer


class TestPredict:
    ANSWER = {  # noqa: RUF012
        "object": "list",
        "model": "intents@3",
        "data": [
            {
                "index": 0,
                "label": "refund",
                "probabilities": {"refund": 0.9, "return": 0.1},
                "disagreement": 0.02,
                "members": [{"name": "a", "label": "return", "adapters": []}],
            }
        ],
        "usage": {"prompt_tokens": 4, "member_tokens": 12},
    }

    def test_asks_the_only_ensemble_and_shows_labels(
        self, choir: Choir, local_server: LocalServer
    ) -> None:
        local_server.answers["GET /v1/ensembles"] = (200, {"data": [ENSEMBLE]})
        local_server.answers["POST /v1/predict"] = (200, self.ANSWER)
        ran = choir("predict", "money back", "--members", "--fusion", "vote")
        assert ran.status == 0
        assert local_server.bodies == [
            {
                "model": "intents",
                "input": ["money back"],
                "fusion": {"method": "vote"},
                "return_members": True,
            }
        ]
        for shown in ("intents@3", "money back", "refund", "0.900", "return"):
            assert shown in ran.out

    def test_json_is_the_servers_answer(self, choir: Choir, local_server: LocalServer) -> None:
        local_server.answers["POST /v1/predict"] = (200, self.ANSWER)
        ran = choir("predict", "money back", "--model", "intents", "--json")
        assert json.loads(ran.out) == self.ANSWER

    def test_several_ensembles_need_model(self, choir: Choir, local_server: LocalServer) -> None:
        other = {**ENSEMBLE, "name": "replies"}
        local_server.answers["GET /v1/ensembles"] = (200, {"data": [ENSEMBLE, other]})
        ran = choir("predict", "money back")
        assert ran.status == 2
        assert "intents, replies" in ran.err


class TestChat:
    def test_streams_answers_and_keeps_the_conversation(
        self, choir: Choir, local_server: LocalServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        chunk = {"model": "replies@1", "choices": [{"delta": {"content": "Hello."}}]}
        stream = f"data: {json.dumps(chunk)}\n\ndata: [DONE]\n\n"
        local_server.answers["POST /v1/chat/completions"] = (200, stream)
        lines = iter(["hi", "and now?", ""])
        monkeypatch.setattr("builtins.input", lambda prompt: next(lines))
        ran = choir("chat", "--model", "replies")
        assert ran.status == 0
        assert ran.out == "Hello.\nHello.\n"
        assert [message["content"] for message in local_server.bodies[1]["messages"]] == [
            "hi",
            "Hello.",
            "and now?",
        ]

    def test_a_refused_turn_does_not_end_it(
        self, choir: Choir, local_server: LocalServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        local_server.answers["POST /v1/chat/completions"] = (
            400,
            {"error": {"message": "too long"}},
        )
        lines = iter(["hi", "again", ""])
        monkeypatch.setattr("builtins.input", lambda prompt: next(lines))
        ran = choir("chat", "--model", "replies")
        assert ran.err == "choir: too long\n" * 2
        assert len(local_server.bodies[1]["messages"]) == 1

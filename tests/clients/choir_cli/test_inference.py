"""`choir predict` and `choir chat`: what they send and print."""

import io
import json
from pathlib import Path

import pytest

from tests.clients.choir_cli.conftest import ENSEMBLE, Choir
from tests.clients.conftest import LocalServer
from tests.serve.images.hostile import picture as drawn
from tests.serve.images.hostile import saved, url_of


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
                "members": [
                    {
                        "name": "a",
                        "label": "return",
                        "probabilities": {"refund": 0.4, "return": 0.6},
                        "adapters": [],
                    }
                ],
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

    def test_images_are_sent_as_data_urls_and_shown_by_their_names(
        self, choir: Choir, local_server: LocalServer, tmp_path: Path
    ) -> None:
        local_server.answers["POST /v1/predict"] = (200, self.ANSWER)
        picture = tmp_path / "cat.png"
        picture.write_bytes(saved(drawn()))
        ran = choir("predict", "--image", str(picture), "--model", "intents")
        assert ran.status == 0
        (body,) = local_server.bodies
        assert body["input"] == [{"image": url_of(drawn())}]
        assert "cat.png" in ran.out
        assert "refund" in ran.out

    def test_an_image_and_a_text_are_one_input_where_they_belong_together(
        self, choir: Choir, local_server: LocalServer, tmp_path: Path
    ) -> None:
        local_server.answers["POST /v1/predict"] = (200, self.ANSWER)
        picture = tmp_path / "sofa.png"
        picture.write_bytes(saved(drawn()))
        asked = ("predict", "--together", "--model", "intents", "--image", str(picture))
        ran = choir(*asked, "It came today.")
        assert ran.status == 0
        (body,) = local_server.bodies
        assert body["input"] == [{"image": url_of(drawn()), "text": "It came today."}]
        assert "sofa.png: It came today." in " ".join(ran.out.split())
        for more in (("one", "two"), ("one", "--pair", "two")):
            ran = choir(*asked, *more)
            assert ran.status != 0
            assert "as many images as texts, and no --pair" in " ".join(ran.err.split())
        assert len(local_server.bodies) == 1

    @pytest.mark.parametrize(
        ("content", "words"), [(b"GIF89a", "no PNG, JPEG or WebP"), (None, "cannot be read")]
    )
    def test_a_file_that_is_no_image_is_named_before_anything_is_sent(
        self,
        choir: Choir,
        local_server: LocalServer,
        tmp_path: Path,
        content: bytes | None,
        words: str,
    ) -> None:
        file = tmp_path / "odd.png"
        if content is not None:
            file.write_bytes(content)
        ran = choir("predict", "--image", str(file), "--model", "intents")
        assert ran.status != 0
        assert words in " ".join(ran.err.split())
        assert local_server.bodies == []

    def test_json_is_the_servers_answer(self, choir: Choir, local_server: LocalServer) -> None:
        local_server.answers["POST /v1/predict"] = (200, self.ANSWER)
        ran = choir("predict", "money back", "--model", "intents", "--json")
        assert json.loads(ran.out) == self.ANSWER

    def test_labels_of_a_multilabel_ensemble_are_shown_with_their_probabilities(
        self, choir: Choir, local_server: LocalServer
    ) -> None:
        rows = [
            {"labels": ["late", "lost"], "probabilities": {"late": 0.9, "lost": 0.6, "new": 0.1}},
            {"labels": [], "probabilities": {"late": 0.2, "lost": 0.1, "new": 0.3}},
        ]
        local_server.answers["POST /v1/predict"] = (
            200,
            {"model": "topics@1", "data": [{"index": n, **row} for n, row in enumerate(rows)]},
        )
        ran = choir("predict", "where is it", "hello", "--model", "topics")
        assert [line.split() for line in ran.out.splitlines()[3:]] == [
            ["where", "is", "it", "late,", "lost", "0.900,", "0.600"],
            ["hello", "none"],
        ]

    def test_values_of_a_regression_ensemble_are_shown_with_their_spread(
        self, choir: Choir, local_server: LocalServer
    ) -> None:
        item = {
            "index": 0,
            "value": 3.25,
            "std": 0.5,
            "members": [{"name": "b", "adapters": [], "value": -1}],
        }
        local_server.answers["POST /v1/predict"] = (200, {"model": "price@2", "data": [item]})
        ran = choir("predict", "a house", "--model", "price", "--members")
        title, heading, _, row = (line.split() for line in ran.out.splitlines())
        assert (title, heading) == (["price@2"], ["text", "value", "std", "b"])
        assert row == ["a", "house", "3.250", "0.500", "-1.000"]

    def test_the_answer_of_a_member_that_was_not_asked_is_left_empty(
        self, choir: Choir, local_server: LocalServer
    ) -> None:
        members = [
            {"name": name, "label": name * 3, "probabilities": {name * 3: 1.0}, "adapters": []}
            for name in "ab"
        ]
        rows = [
            {"index": n, "label": "x", "probabilities": {"x": 1.0}, "members": members[: n + 1]}
            for n in range(2)
        ]
        local_server.answers["POST /v1/predict"] = (200, {"model": "e@1", "data": rows})
        ran = choir("predict", "one", "two", "--model", "e", "--members")
        assert [line.split() for line in ran.out.splitlines()[3:]] == [
            ["one", "x", "1.000", "aaa"],
            ["two", "x", "1.000", "aaa", "bbb"],
        ]

    def test_abstaining_and_early_exit_are_asked_for_and_shown(
        self, choir: Choir, local_server: LocalServer
    ) -> None:
        row = {"label": "x", "probabilities": {"x": 0.5}, "disagreement": 0.1}
        rows = [{"index": n, **row, "members_asked": n + 1, "abstained": n == 0} for n in range(2)]
        local_server.answers["POST /v1/predict"] = (200, {"model": "e@1", "data": rows})
        asked = {"early_exit": {"risk": 0.05}, "abstain": {"risk": 0.02}}
        ran = choir("predict", "one", "two", "--model", "e", "--fusion", json.dumps(asked))
        assert local_server.bodies[0]["fusion"] == asked
        assert [line.split() for line in ran.out.splitlines()[1:] if "─" not in line] == [
            ["text", "label", "probability", "disagreement", "asked", "abstained"],
            ["one", "x", "0.500", "0.100", "1", "yes"],
            ["two", "x", "0.500", "0.100", "2", "no"],
        ]

    def test_a_fusion_that_is_cut_off_is_not_sent(
        self, choir: Choir, local_server: LocalServer
    ) -> None:
        ran = choir("predict", "one", "--model", "e", "--fusion", '{"abstain": {')
        assert ran.status == 2
        assert "--fusion is no JSON object" in ran.err
        assert local_server.bodies == []

    def test_an_infinite_number_is_not_sent(self, choir: Choir, local_server: LocalServer) -> None:
        ran = choir("predict", "one", "--model", "e", "--fusion", '{"weights": {"a": 1e999}}')
        assert (ran.status, local_server.bodies) == (1, [])
        assert "the request cannot be written as JSON" in ran.err

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

    def test_images_stand_before_the_text_of_the_first_message(
        self,
        choir: Choir,
        local_server: LocalServer,
        monkeypatch: pytest.MonkeyPatch,
        tmp_path: Path,
    ) -> None:
        (tmp_path / "sofa.png").write_bytes(saved(drawn()))
        chunk = {"model": "replies@1", "choices": [{"delta": {"content": "Red."}}]}
        stream = f"data: {json.dumps(chunk)}\n\ndata: [DONE]\n\n"
        local_server.answers["POST /v1/chat/completions"] = (200, stream)
        monkeypatch.setattr("sys.stdin", io.StringIO("which colour?\nsure?\n"))
        ran = choir("chat", "--model", "replies", "--image", str(tmp_path / "sofa.png"))
        assert ran.out == "Red.\nRed.\n"
        picture = {"type": "image_url", "image_url": {"url": url_of(drawn())}}
        asked = [picture, {"type": "text", "text": "which colour?"}]
        said = [each["content"] for each in local_server.bodies[1]["messages"]]
        assert said == [asked, "Red.", "sure?"]

    def test_a_file_that_is_no_image_is_named(
        self, choir: Choir, local_server: LocalServer, tmp_path: Path
    ) -> None:
        ran = choir("chat", "--model", "replies", "--image", str(tmp_path / "none.png"))
        assert (ran.status, local_server.bodies) == (2, [])
        assert "none.png cannot be read: No such file or directory." in ran.err

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
        assert ran.status == 1, "the messages come from a pipe, which nobody reads along"
        assert ran.err == "choir: too long\n" * 2
        assert len(local_server.bodies[1]["messages"]) == 1

    def test_a_pipe_gets_the_answers_alone(
        self, choir: Choir, local_server: LocalServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        chunk = {"model": "replies@1", "choices": [{"delta": {"content": "Hello."}}]}
        stream = f"data: {json.dumps(chunk)}\n\ndata: [DONE]\n\n"
        local_server.answers["POST /v1/chat/completions"] = (200, stream)
        monkeypatch.setattr("sys.stdin", io.StringIO("hi\nand now?\n"))
        assert choir("chat", "--model", "replies").out == "Hello.\nHello.\n"

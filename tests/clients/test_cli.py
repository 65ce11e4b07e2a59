"""The `choir` command as a person meets it: what it prints, sends and exits with."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from choir_cli import main, parsing
from choir_cli.console import UsageError

from .conftest import LocalServer

DIGEST = "sha256:" + "ab" * 32
ENSEMBLE = {
    "name": "intents",
    "active_version": 3,
    "versions": [{"version": 1}, {"version": 3}],
    "members": [{"name": "a", "adapters": [{"adapter": "intents-a", "digest": DIGEST}]}],
    "rollout": None,
}
ROLLOUT = {
    "id": "r1",
    "ensemble": "intents",
    "state": "done",
    "from": 3,
    "to": 4,
    "replicas": 1,
    "reason": None,
}

AUDIT = {
    "at": "2026-01-01T00:00:00Z",
    "actor": "eve",
    "action": "swap",
    "ensemble": "intents",
    "from": 3,
    "to": None,
    "outcome": "refused",
    "reason": "no room",
}


@dataclass
class Ran:
    status: int
    out: str
    err: str


Choir = Callable[..., Ran]


@pytest.fixture
def choir(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Choir:
    """`choir("status")` runs the command as the installed script would."""
    monkeypatch.setenv("COLUMNS", "200")

    def run(*args: str) -> Ran:
        monkeypatch.setattr("sys.argv", ["choir", *args])
        with pytest.raises(SystemExit) as ended:
            main.run()
        captured = capsys.readouterr()
        return Ran(int(ended.value.code or 0), captured.out, captured.err)

    return run


class TestErrors:
    @pytest.mark.parametrize(
        ("args", "status", "says"),
        [
            (["status", "--url", "http://127.0.0.1:9"], 1, "no answer from http://127.0.0.1:9"),
            (["status", "--url", "nonsense"], 1, "not a server's address"),
            (["verify", "/not/there"], 1, "is not a bundle"),
            (["swap", "intents"], 2, "MEMBER=URI pairs, --version N or"),
            (["swap", "intents", "a"], 2, "takes NAME=VALUE"),
            (["swap", "intents", "a=x", "--share", "0.1"], 2, "need --strategy"),
            (["serve"], 2, "Say what to serve"),
            (["serve", "x", "--base", "y"], 2, "not both"),
            (["serve", "x", "--adapter", "a=b"], 2, "go with --base"),
            (["serve", "--base", "y"], 2, "--adapter NAME=DIR"),
            (["serve", "x", "--engine", "{"], 2, "--engine is not JSON"),
            (["serve", "x", "--engine", "[]"], 2, "--engine takes a JSON object"),
        ],
    )
    def test_are_one_sentence_and_a_status(
        self, choir: Choir, args: list[str], status: int, says: str
    ) -> None:
        ran = choir(*args)
        assert ran.status == status
        assert says in ran.err
        assert ran.err.count("\n") == 1
        assert "Traceback" not in ran.err

    def test_an_unforeseen_one_is_a_sentence_too(
        self, choir: Choir, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def surprise(*args: object) -> None:
            raise ZeroDivisionError("oops")

        monkeypatch.setattr("choir_cli.operations.Choir", surprise)
        ran = choir("status")
        assert ran.status == 1
        assert "ZeroDivisionError: oops" in ran.err
        assert ran.err.count("\n") == 1

    def test_the_servers_sentence_is_shown(self, choir: Choir, local_server: LocalServer) -> None:
        message = "version 3 is active, not 2"
        local_server.answers["POST /v1/ensembles/intents/swap"] = (
            409,
            {"error": {"message": message}},
        )
        ran = choir("swap", "intents", "a=file:///data/a", "--expected-version", "2")
        assert (ran.status, ran.err) == (1, f"choir: {message}\n")


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

    def test_finds_the_only_ensemble_and_shows_labels(
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

    def test_a_choice_of_ensembles_is_left_to_the_person(
        self, choir: Choir, local_server: LocalServer
    ) -> None:
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


class TestOperations:
    def test_status(self, choir: Choir, local_server: LocalServer) -> None:
        local_server.answers["GET /ready"] = (503, {"error": {"message": "engines start"}})
        local_server.answers["GET /v1/ensembles"] = (200, {"data": [ENSEMBLE]})
        ran = choir("status")
        assert ran.status == 0
        for shown in ("not ready", "intents", "3", "1, 3", f"a: intents-a {'ab' * 6}"):
            assert shown in ran.out

    def test_status_says_what_is_odd(self, choir: Choir, local_server: LocalServer) -> None:
        odd = {
            **ENSEMBLE,
            "differences": ["a newer version lies in the bundle"],
            "stale_fusion": True,
        }
        local_server.answers["GET /ready"] = (200, {})
        local_server.answers["GET /v1/ensembles"] = (200, {"data": [odd]})
        ran = choir("status")
        assert "intents: a newer version lies in the bundle\n" in ran.out
        assert "intents: the fusion was fitted on other adapters" in ran.out

    def test_status_says_what_was_fitted_again(
        self, choir: Choir, local_server: LocalServer
    ) -> None:
        fit = {"state": "refitted", "parts": ["temperature"], "stale_members": []}
        local_server.answers["GET /ready"] = (200, {})
        local_server.answers["GET /v1/ensembles"] = (
            200,
            {"data": [{**ENSEMBLE, "fusion_fit": fit}]},
        )
        assert (
            "intents: the fusion was fitted again for the active adapters\n" in choir("status").out
        )

    @pytest.mark.parametrize(
        ("loaded_on", "says"),
        [(["engine/0", "engine/2"], "now on engine/0, engine/2"), ([], "on no engine now")],
    )
    def test_status_says_where_an_ensemble_on_demand_is_loaded(
        self, choir: Choir, local_server: LocalServer, loaded_on: list[str], says: str
    ) -> None:
        versions = [{"version": 1}, {"version": 3, "loaded_on": loaded_on}]
        local_server.answers["GET /ready"] = (200, {})
        local_server.answers["GET /v1/ensembles"] = (
            200,
            {"data": [{**ENSEMBLE, "pinned": False, "versions": versions}]},
        )
        assert f"intents: loaded on demand, {says}\n" in choir("status").out

    def test_status_says_how_many_versions_are_not_shown(
        self, choir: Choir, local_server: LocalServer
    ) -> None:
        local_server.answers["GET /ready"] = (200, {})
        local_server.answers["GET /v1/ensembles"] = (
            200,
            {"data": [{**ENSEMBLE, "version_count": 9000}]},
        )
        assert "1, 3 (8998 more)" in " ".join(choir("status").out.split())

    def test_swap_sends_the_contract(self, choir: Choir, local_server: LocalServer) -> None:
        local_server.answers["POST /v1/ensembles/intents/swap"] = (200, ROLLOUT)
        ran = choir("swap", "intents", "a=file:///data/a", "--expected-version", "3")
        assert ran.out == "intents: version 3 -> 4, done (rollout r1)\n"
        assert local_server.paths == ["POST /v1/ensembles/intents/swap?wait=true"]
        assert local_server.bodies == [
            {"members": {"a": ["file:///data/a"]}, "expected_version": 3}
        ]

    def test_swap_sends_a_manifest(
        self, choir: Choir, local_server: LocalServer, tmp_path: Path
    ) -> None:
        local_server.answers["POST /v1/ensembles/intents/swap"] = (200, ROLLOUT)
        file = tmp_path / "manifest.json"
        file.write_text('{"task": "classification"}')
        assert choir("swap", "intents", "--manifest", str(file)).status == 0
        assert local_server.bodies == [{"manifest": {"task": "classification"}}]
        assert choir("swap", "intents", "--manifest", str(file), "--version", "2").status == 2
        file.write_text("[]")
        assert "takes a JSON object" in choir("swap", "intents", "--manifest", str(file)).err

    def test_a_canary_is_followed_to_its_end(self, choir: Choir, local_server: LocalServer) -> None:
        counts = {"requests": 100, "errors": 0, "mean_ms": 41.2}
        trial = {"share": 0.1, "candidate": counts, "stable": counts, "agreement": 0.98}
        local_server.answers["POST /v1/ensembles/intents/swap"] = (
            202,
            {**ROLLOUT, "state": "preparing"},
        )
        local_server.answers["GET /v1/rollouts/r1"] = (200, {**ROLLOUT, "trial": trial})
        ran = choir(
            *("swap", "intents", "--version", "4", "--strategy", "canary", "--share", "0.1"),
            *("--min-requests", "100", "--max-error-rate", "0.02", "--min-agreement", "0.9"),
        )
        assert local_server.paths[0] == "POST /v1/ensembles/intents/swap"
        assert local_server.bodies[0]["strategy"] == {
            "kind": "canary",
            "share": 0.1,
            "gates": {"min_requests": 100, "max_error_rate": 0.02, "min_agreement": 0.9},
        }
        assert ran.status == 0
        assert ran.out.splitlines()[:2] == [
            "intents: version 3 -> 4, preparing (rollout r1)",
            "intents: version 3 -> 4, done (rollout r1)",
        ]
        assert "100 requests, 0 errors, 41 ms" in ran.out
        assert "98.0%" in ran.out

    def test_promote_and_abort(self, choir: Choir, local_server: LocalServer) -> None:
        local_server.answers["POST /v1/rollouts/r1/promote"] = (200, ROLLOUT)
        local_server.answers["POST /v1/rollouts/r1/abort"] = (200, {**ROLLOUT, "state": "aborted"})
        assert "version 3 -> 4, done" in choir("promote", "r1").out
        aborted = choir("abort", "r1")
        assert (aborted.status, aborted.out) == (0, "intents: version 3 stays (rollout r1)\n")
        assert local_server.paths == [
            "POST /v1/rollouts/r1/promote?wait=true",
            "POST /v1/rollouts/r1/abort",
        ]

    def test_an_aborted_rollout_is_a_failure(self, choir: Choir, local_server: LocalServer) -> None:
        aborted = {**ROLLOUT, "state": "aborted", "reason": "the adapter changes nothing"}
        local_server.answers["POST /v1/ensembles/intents/rollback"] = (202, aborted)
        ran = choir("rollback", "intents", "--to", "2", "--no-wait")
        assert ran.status == 1
        assert "the adapter changes nothing" in ran.out
        assert local_server.paths == ["POST /v1/ensembles/intents/rollback"]
        assert local_server.bodies == [{"to": 2}]

    def test_rollouts(self, choir: Choir, local_server: LocalServer) -> None:
        local_server.answers["GET /v1/rollouts"] = (200, {"data": [ROLLOUT]})
        ran = choir("rollouts")
        for shown in ("r1", "intents", "done"):
            assert shown in ran.out
        assert json.loads(choir("rollouts", "--json").out) == [ROLLOUT]

    def test_the_audit_lists_what_was_refused_too(
        self, choir: Choir, local_server: LocalServer
    ) -> None:
        answer = {"data": [ROLLOUT], "audit": [AUDIT]}
        local_server.answers["GET /v1/rollouts"] = (200, answer)
        ran = choir("rollouts", "--audit")
        for shown in ("eve", "swap", "refused", "no room"):
            assert shown in ran.out
        assert json.loads(choir("rollouts", "--audit", "--json").out) == [AUDIT]


class TestTokens:
    def test_what_is_printed_is_a_setting_that_takes_the_secret(
        self, choir: Choir, tmp_path: Path
    ) -> None:
        from serve.bearer import find_token
        from serve.config import Settings

        ran = choir("token", "ann", "--role", "admin")
        first, _, line = ran.out.splitlines()
        file = tmp_path / "choir.yaml"
        file.write_text(f"tokens:\n{line}\n")
        tokens = Settings.load({"bundles": ["b"]}, file).tokens
        found = find_token(tokens, first.rpartition(" ")[2].encode())
        assert found is not None
        assert (found.name, found.role) == ("ann", "admin")

    @pytest.mark.parametrize("wrong", [("An n",), ("admin",), ("ann", "--role", "root")])
    def test_what_cannot_be_a_token_is_said(self, choir: Choir, wrong: tuple[str, ...]) -> None:
        ran = choir("token", *wrong)
        assert (ran.status, ran.out) == (2, "")


class TestParsing:
    def test_labels_one_a_line_or_as_json(self, tmp_path: Path) -> None:
        lines, listed = tmp_path / "labels.txt", tmp_path / "labels.json"
        lines.write_text("card arrival\n\nrefund\n")
        listed.write_text('["card arrival", "refund"]')
        assert parsing.read_labels(lines) == parsing.read_labels(listed)
        assert parsing.read_labels(lines) == ["card arrival", "refund"]

    @pytest.mark.parametrize(
        ("content", "labels"),
        [
            ("\ufeffcard\nparcel\n", ["card", "parcel"]),
            ('\ufeff["card", "parcel"]', ["card", "parcel"]),
            ("card\r\nparcel\r\n", ["card", "parcel"]),
            ("[0, 18)\n[18, 65)\n", ["[0, 18)", "[18, 65)"]),
            ("[other]\ncard\n", ["[other]", "card"]),
            ("{name}\ncard\n", ["{name}", "card"]),
            ('{\n "1": "parcel",\n "0": "card"\n}', ["card", "parcel"]),
            ("a\u2028b\nc\x0bd\ne\u0085f\n", ["a\u2028b", "c\x0bd", "e\u0085f"]),
            ("1\n2\n3\n", ["1", "2", "3"]),
            ("7", ["7"]),
            ("Smith, John\nRoe, Jane\n", ["Smith, John", "Roe, Jane"]),
            ("2024, autumn\n1999, spring\n", ["2024, autumn", "1999, spring"]),
        ],
    )
    def test_labels_files_as_people_have_them(
        self, tmp_path: Path, content: str, labels: list[str]
    ) -> None:
        file = tmp_path / "labels"
        file.write_bytes(content.encode())
        assert parsing.read_labels(file) == labels

    @pytest.mark.parametrize(
        ("content", "says"),
        [
            ('{"card": 0, "parcel": 1}', "by their numbers"),
            ('{"0": "card", "2": "parcel"}', "not the numbers from 0"),
            ('{"label": "card"}\n{"label": "parcel"}\n', "JSON Lines"),
            ("0,card\n1,parcel\n", "a number before each label"),
            ("id,label\n0,card\n1,parcel\n", "a number before each label"),
            ("1\tcard\n2\tparcel\n", "a number before each label"),
            ('"card"\n"parcel"\n', "in quotes"),
            ('["card", "card"]', "one label twice"),
            ("caf\u00e9\ncafe\u0301\n", "one label twice"),
            ('["card",\n"parcel"', "not JSON"),
            ("[0, 1, 2]", "a list of texts"),
        ],
    )
    def test_files_that_hold_no_labels_are_refused_with_what_they_hold(
        self, tmp_path: Path, content: str, says: str
    ) -> None:
        file = tmp_path / "labels"
        file.write_bytes(content.encode())
        with pytest.raises(UsageError, match=says):
            parsing.read_labels(file)

    @pytest.mark.parametrize("content", [b"[1, 2]", b"[", b"\xff\xfe", "card".encode("utf-16")])
    def test_wrong_label_files_are_usage_errors(self, tmp_path: Path, content: bytes) -> None:
        file = tmp_path / "labels"
        file.write_bytes(content)
        with pytest.raises(UsageError, match="labels"):
            parsing.read_labels(file)

    def test_pairs_keep_order_and_later_equal_signs(self) -> None:
        assert list(parsing.pairs("--adapter", ["b=x=1", "a=y"]).items()) == [
            ("b", "x=1"),
            ("a", "y"),
        ]

    @pytest.mark.parametrize("values", [["a"], ["=x"], ["a="], ["a=x", "a=y"]])
    def test_broken_pairs_are_usage_errors(self, values: list[str]) -> None:
        with pytest.raises(UsageError, match="--adapter"):
            parsing.pairs("--adapter", values)


class TestServeAndPack:
    def test_options_become_settings(self, choir: Choir, monkeypatch: pytest.MonkeyPatch) -> None:
        seen: list[dict[str, Any]] = []
        monkeypatch.setattr("choir_cli.serving._run", lambda flags, config: seen.append(flags) or 3)
        ran = choir(
            *("serve", "one", "two", "--port", "9000", "--replicas", "2"),
            *("--adapter-root", "/data", "--engine", '{"max_loras": 8}'),
        )
        assert ran.status == 3
        assert seen == [
            {
                "bundles": [Path("one"), Path("two")],
                "port": 9000,
                "replicas": 2,
                "adapter_roots": [Path("/data")],
                "engine": {"max_loras": 8},
            }
        ]

    def test_a_base_and_adapters_are_packed_and_served(
        self, choir: Choir, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        packed: list[dict[str, Any]] = []
        served: list[dict[str, Any]] = []

        def pack(base: str, adapters: dict[str, Path], out: Path, **rest: Any) -> Any:
            packed.append({"base": base, "adapters": adapters, **rest})
            return SimpleNamespace(path=out)

        monkeypatch.setattr("serve.pack.pack", pack)
        monkeypatch.setattr(
            "choir_cli.serving._run", lambda flags, config: served.append(flags) or 0
        )
        (tmp_path / "labels").write_text("yes\nno\n")
        (tmp_path / "texts.json").write_text('{"yes": " y"}')
        ran = choir(
            *("serve", "--base", "org/name", "--adapter", "a=dir/a", "--adapter", "b=dir/b"),
            *("--task", "classification", "--fusion", "weighted_average", "--weight", "a=0.75"),
            *("--labels", str(tmp_path / "labels"), "--verbalizers", str(tmp_path / "texts.json")),
        )
        assert ran.status == 0
        assert packed == [
            {
                "base": "org/name",
                "adapters": {"a": [Path("dir/a")], "b": [Path("dir/b")]},
                "task": "classification",
                "fusion": "weighted_average",
                "labels": ["yes", "no"],
                "weights": {"a": 0.75},
                "template": "{text}",
                "verbalizers": {"yes": " y"},
                "name": "ensemble",
                "revision": None,
            }
        ]
        (flags,) = served
        assert [bundle.name for bundle in flags["bundles"]] == ["bundle"]

    def test_commands_for_a_running_server_load_no_engine(self) -> None:
        heavy = [
            "ray",
            "torch",
            "vllm",
            "transformers",
            "sklearn",
            "numpy",
            "serve.config",
            "training",
        ]
        code = f"import choir_cli.main, sys; print([m for m in {heavy} if m in sys.modules])"
        run = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
        assert run.stdout.strip() == "[]"

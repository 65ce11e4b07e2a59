"""What the command prints, and the status that it ends with, when something is wrong."""

import subprocess
import sys

import pytest

from tests.clients.choir_cli.conftest import Choir
from tests.clients.conftest import LocalServer


class TestErrors:
    @pytest.mark.parametrize(
        ("args", "status", "says"),
        [
            (["status", "--url", "http://127.0.0.1:9"], 1, "no answer from http://127.0.0.1:9"),
            (["status", "--url", "nonsense"], 1, "not a server's address"),
            (["verify", "/not/there"], 1, "There is no folder /not/there"),
            (["swap", "intents"], 2, "MEMBER=URI pairs, --version N or"),
            (["swap", "intents", "a"], 2, "'a' must be given as MEMBER=URI"),
            (["swap", "intents", "a=x", "--share", "0.1"], 2, "need --strategy"),
            (["serve"], 2, "Say what to serve"),
            (["serve", "x", "--base", "y"], 2, "not both"),
            (["serve", "x", "--adapter", "a=b"], 2, "need --base"),
            (["serve", "--base", "y"], 2, "--adapter NAME=DIR"),
            (["serve", "x", "--engine", "{"], 2, "--engine is not JSON"),
            (["serve", "x", "--engine", "[]"], 2, "--engine takes a JSON object"),
        ],
    )
    def test_an_error_is_one_sentence_and_a_status(
        self, choir: Choir, args: list[str], status: int, says: str
    ) -> None:
        ran = choir(*args)
        assert ran.status == status
        assert says in ran.err
        assert ran.err.count("\n") == 1
        assert "Traceback" not in ran.err

    def test_an_unexpected_error_is_one_sentence_too(
        self, choir: Choir, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def surprise(*args: object) -> None:
            raise ZeroDivisionError("oops")

        monkeypatch.setattr("choir_cli.operations.Choir", surprise)
        ran = choir("status")
        assert ran.status == 1
        assert "ZeroDivisionError: oops" in ran.err
        assert ran.err.count("\n") == 1

    def test_the_message_of_the_server_is_printed(
        self, choir: Choir, local_server: LocalServer
    ) -> None:
        message = "version 3 is active, not 2"
        local_server.answers["POST /v1/ensembles/intents/swap"] = (
            409,
            {"error": {"message": message}},
        )
        ran = choir("swap", "intents", "a=file:///data/a", "--expected-version", "2")
        assert (ran.status, ran.err) == (1, f"choir: {message}\n")

    def test_a_field_of_the_api_is_called_by_its_flag(
        self, choir: Choir, local_server: LocalServer
    ) -> None:
        message = "fit it again, or allow it with allow_stale_fusion; 'min_agreement' is not a gate"
        local_server.answers["POST /v1/ensembles/intents/swap"] = (
            400,
            {"error": {"message": message, "param": "allow_stale_fusion"}},
        )
        ran = choir("swap", "intents", "a=file:///data/a")
        assert ran.err == (
            "choir: fit it again, or allow it with --allow-stale-fusion; --min-agreement is not a gate\n"
        )


def test_the_command_starts_without_loading_the_server_or_training() -> None:
    """`choir status` must answer at once: Ray, vLLM and torch take seconds to import."""
    code = "import choir_cli.main, sys; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(run.stdout.split())
    assert "choir_client" in loaded
    assert (
        loaded & {"ray", "torch", "vllm", "transformers", "sklearn", "numpy", "training"} == set()
    )
    # The base class of the errors, and the way to print, are all that it needs of the server.
    of_the_server = {".".join(name.split(".")[:2]) for name in loaded if name.startswith("serve.")}
    assert of_the_server == {"serve.errors", "serve.terminal"}

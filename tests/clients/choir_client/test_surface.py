"""What the package exports, what it imports, and where its settings come from."""

import inspect
import subprocess
import sys

import httpx
import pytest

import choir_client
from choir_client import AsyncChoir, Choir, ChoirError

METHODS = {
    "predict": "model input fusion return_members",
    "complete": "model prompt options",
    "chat": "model messages options",
    "stream_complete": "model prompt options",
    "stream_chat": "model messages options",
    "models": "",
    "ensembles": "",
    "ensemble": "name",
    "swap": "name members manifest version expected_version strategy allow_stale_fusion wait",
    "rollback": "name to wait",
    "rollouts": "",
    "audit": "",
    "rollout": "rollout_id",
    "wait": "rollout_id",
    "promote": "rollout_id wait",
    "abort": "rollout_id",
    "prune": "keep_versions keep_days dry_run",
    "health": "",
    "ready": "",
    "metrics": "",
}


def _methods(client: type) -> dict[str, str]:
    """The public methods of a client with their parameters, without the one that closes it."""
    return {
        name: " ".join(list(inspect.signature(method).parameters)[1:])
        for name, method in inspect.getmembers(client, inspect.isfunction)
        if not name.startswith("_") and name not in ("close", "aclose")
    }


class TestSurface:
    def test_everything_exported_exists_and_nothing_else_is_public(self) -> None:
        modules = {"async_client", "client", "exceptions", "models", "predictions"}
        public = {name for name in vars(choir_client) if not name.startswith("_")}
        assert public - modules == set(choir_client.__all__)

    def test_both_clients_have_these_methods_and_parameters(self) -> None:
        assert _methods(Choir) == METHODS
        assert _methods(AsyncChoir) == METHODS

    def test_both_clients_take_the_same_settings(self) -> None:
        settings = ["self", "url", "token", "timeout", "retries", "transport"]
        assert list(inspect.signature(Choir.__init__).parameters) == settings
        assert list(inspect.signature(AsyncChoir.__init__).parameters) == settings
        assert Choir().url == AsyncChoir().url == "http://127.0.0.1:8000"

    def test_every_error_is_a_choir_error(self) -> None:
        errors = [
            getattr(choir_client, name)
            for name in choir_client.__all__
            if isinstance(getattr(choir_client, name), type)
            and issubclass(getattr(choir_client, name), Exception)
        ]
        assert len(errors) >= 12
        assert all(issubclass(each, ChoirError) for each in errors)

    def test_importing_the_client_loads_httpx_and_pydantic_only(self) -> None:
        def loaded(modules: str) -> set[str]:
            code = f"import {modules}, sys; print(*sys.modules)"
            run = subprocess.run(
                [sys.executable, "-c", code], capture_output=True, text=True, check=True
            )
            return {name.partition(".")[0] for name in run.stdout.split()}

        ours = loaded("choir_client") - sys.stdlib_module_names
        assert ours - loaded("httpx, httpx_sse, pydantic.fields") == {"choir_client"}

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

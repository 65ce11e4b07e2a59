"""Liveness, readiness, metrics and the schema."""

import importlib
import json
import re
from dataclasses import replace
from typing import Any

import pytest

from serve.gateway.routes import health
from tests.serve.gateway.conftest import Gateway, Start, refused
from tests.serve.gateway.fakes import desired, ensemble, held


async def test_a_gateway_with_routes_and_an_engine_is_ready(gateway: Gateway) -> None:
    for path, status in (("/health", "ok"), ("/ready", "ready")):
        response = await gateway.http.get(path)
        assert response.status_code == 200
        assert response.json() == {"status": status, "degraded": False}


async def test_without_an_engine_a_gateway_is_alive_but_not_ready(start: Start) -> None:
    gateway = await start(desired(held(ensemble()), ready_engines=0))
    refused(await gateway.http.get("/ready"), 503, "engine")
    assert (await gateway.http.get("/health")).status_code == 200


async def test_a_pool_without_an_engine_is_named_and_keeps_no_request_from_the_others(
    start: Start,
) -> None:
    both = replace(desired(held(ensemble())), ready_engines={"": 1, "chat": 0})
    gateway = await start(both)
    refused(await gateway.http.get("/ready"), 503, "no engine of the pool chat")
    assert gateway.agent.ready_engines("")
    assert not gateway.agent.ready_engines("chat")
    assert (await gateway.predict()).status_code == 200


async def test_without_routes_a_gateway_is_not_ready(start: Start) -> None:
    refused(await (await start(desired())).http.get("/ready"), 503, "version")


async def test_a_gateway_that_lost_its_lease_is_degraded_but_ready(start: Start) -> None:
    gateway = await start(desired(held(ensemble()), lease=1e-9))
    assert (await gateway.http.get("/ready")).json() == {"status": "ready", "degraded": True}
    assert (await gateway.predict()).status_code == 200


async def test_metrics_come_from_the_controller(gateway: Gateway) -> None:
    response = await gateway.http.get("/metrics")
    assert response.content == b"choir_active_version 3.0\n"
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")


async def test_the_versions_are_those_of_the_installed_packages(gateway: Gateway) -> None:
    versions = (await gateway.http.get("/version")).json()
    modules = {name: importlib.import_module(name) for name in ("ray", "torch", "transformers")}
    assert {name: versions[name] for name in modules} == {
        name: str(module.__version__) for name, module in modules.items()
    }
    assert set(versions) == {"choir", "vllm", "ray", "torch", "transformers", "peft"}
    assert versions["choir"]
    assert versions["vllm"], "the CPU build has another name"


async def test_what_is_not_installed_has_no_version(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(health.PACKAGES, "vllm", ("no-such-package",))
    versions = (await (await start()).http.get("/version")).json()
    assert versions["vllm"] is None
    assert versions["ray"]


async def test_the_schema_holds_every_route_with_its_body_and_errors(gateway: Gateway) -> None:
    schema = (await gateway.http.get("/openapi.json")).json()
    operations = {
        (method, path): operation
        for path, methods in schema["paths"].items()
        for method, operation in methods.items()
    }
    bodies = {
        path: operation["requestBody"]["content"]["application/json"]["schema"]["$ref"]
        for (_, path), operation in operations.items()
        if "requestBody" in operation
    }
    assert {path: reference.rpartition("/")[2] for path, reference in bodies.items()} == {
        "/v1/predict": "PredictRequest",
        "/classify": "ClassifyRequest",
        "/v1/embeddings": "EmbeddingsRequest",
        "/v1/load_lora_adapter": "LoadLoraRequest",
        "/v1/unload_lora_adapter": "UnloadLoraRequest",
        "/v1/completions": "GenerateRequest",
        "/v1/chat/completions": "GenerateRequest",
        "/v1/responses": "GenerateRequest",
        "/tokenize": "TokensRequest",
        "/detokenize": "TokensRequest",
        "/v1/ensembles/{name}/swap": "SwapRequest",
        "/v1/ensembles/{name}/rollback": "RollbackRequest",
        "/v1/prune": "PruneRequest",
    }
    gets = {path for method, path in operations if method == "get"}
    assert gets == {
        *("/health", "/ready", "/metrics", "/version", "/v1/models", "/v1/models/{model_id}"),
        *("/v1/ensembles", "/v1/ensembles/{name}", "/v1/rollouts", "/v1/rollouts/{rollout_id}"),
        "/report/{name}",
    }
    assert {"400", "401", "404", "413", "429", "503"} <= set(
        operations["post", "/v1/predict"]["responses"]
    )
    assert not any("422" in operation["responses"] for operation in operations.values())


async def test_every_reference_of_the_schema_exists(gateway: Gateway) -> None:
    schema = (await gateway.http.get("/openapi.json")).json()
    references = set(re.findall(r'"\$ref": "#/([^"]+)"', json.dumps(schema)))
    assert "components/schemas/ErrorAnswer" in references
    for reference in references:
        part: Any = schema
        for step in reference.split("/"):
            part = part[step]

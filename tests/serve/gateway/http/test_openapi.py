"""The schema of every route, and requests that schemathesis makes from it: no answer is a server error.

Gateway, controller, store and database are real and behind a real socket; only vLLM is not."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from serve.agents.gateway_agent import GatewayAgent
from serve.config.settings import Settings
from serve.gateway.app import create_app
from tests.serve.gateway.fakes import (
    FakeControl,
    FakeController,
    FakeEngines,
    desired,
)
from tests.serve.gateway.running import running

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running(tmp_path_factory.mktemp("api")) as url:
        yield url


def operations() -> list[Any]:
    """Return every route and method of the schema."""
    agent = GatewayAgent(FakeController(desired()))
    plain = Settings.model_validate({"bundles": [Path("bundle")]})
    document = create_app(FakeEngines(), FakeControl(), agent, plain).openapi()
    found = schemathesis.openapi.from_dict(document).get_all_operations()
    return [operation.ok() for operation in found]


@pytest.mark.parametrize("operation", operations(), ids=lambda each: each.label)
@settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(data=st.data())
def test_no_request_is_answered_by_a_fault(server: str, operation: Any, data: Any) -> None:
    mode = data.draw(st.sampled_from(GenerationMode))
    case = data.draw(operation.as_strategy(generation_mode=mode))
    if data.draw(st.booleans()):
        _name_what_is_there(case)
    case.validate_response(case.call(base_url=server), checks=CHECKS)


def _name_what_is_there(case: Any) -> None:
    """Put known names into the paths, so that requests get further than a 404."""
    if "name" in (case.path_parameters or {}):
        case.path_parameters["name"] = "intents"
    if isinstance(case.body, dict):
        if "model" in case.body:
            case.body["model"] = "intents"
        if isinstance(case.body.get("members"), dict):
            case.body["members"] = dict(zip("ab", case.body["members"].values(), strict=False))

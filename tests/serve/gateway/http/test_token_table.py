"""docs/http-api.md says of every route which token it takes."""

import re
from pathlib import Path

from fastapi.routing import APIRoute

from serve.agents.gateway_agent import GatewayAgent
from serve.config.settings import Settings
from serve.gateway.app import create_app
from tests.serve.gateway.fakes import FakeControl, FakeController, FakeEngines, desired

PAGE = (Path(__file__).parents[4] / "docs" / "http-api.md").read_text("utf-8")


def table() -> dict[str, str]:
    """Each route that the table of tokens names -> what it says of it."""
    rows = re.search(r"\n\| routes \| token \|\n\|[-|]+\n((?:\|.*\n)+)", PAGE)
    assert rows is not None
    cells = [line.strip("| ").split(" | ") for line in rows[1].splitlines()]
    return {route: said for routes, said in cells for route in re.findall(r"`(/[^`]*)`", routes)}


def word(route: APIRoute) -> str:
    """What the table must say, by the guard before the route."""
    guards = {getattr(each.call, "__name__", "") for each in route.dependant.dependencies}
    if "admin" in guards:
        return "one of the role `admin`"
    if "inference" in guards:
        return "one of the role `predict`"
    return "any token" if "reading" in guards else "none"


def test_each_route_takes_the_token_that_the_table_says() -> None:
    agent = GatewayAgent(FakeController(desired()))
    plain = Settings.model_validate({"bundles": [Path("bundle")]})
    app = create_app(FakeEngines(), FakeControl(), agent, plain)
    routes = [route for route in app.routes if isinstance(route, APIRoute)]
    assert len(routes) > 20
    said = table()
    for route in routes:
        path = route.path.replace("{name:path}", "")
        expected = word(route)
        if expected == "any token":
            assert path not in said
            assert route.methods == {"GET"}, "the table speaks of all other GET routes together"
        else:
            assert said[path].startswith(expected), path

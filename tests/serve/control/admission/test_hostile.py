"""Hostile requests are refused with the right status and a message, and change nothing.

Gateway, controller, store and database are real; vLLM is faked."""

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from serve.bearer import hashed
from serve.config.settings import Settings
from serve.gateway.app import create_app
from serve.location import Location
from tests.serve.control.admission.hostile import (
    ADAPTERS,
    MANIFESTS,
    PREDICT,
    REQUESTS,
    SWAP,
    URIS,
    Hostile,
    Spoil,
)
from tests.serve.fakes import make_adapter
from tests.serve.gateway.conftest import refused
from tests.serve.gateway.fakes import FakeEngines
from tests.serve.world import World

TOKENS = [
    {"name": f"a-{role}", "role": role, "sha256": hashed(f"{role}-secret")}
    for role in ("read", "predict", "admin")
]


class Server:
    """A gateway in front of a whole control plane."""

    def __init__(self, world: World, http: httpx.AsyncClient) -> None:
        self.world = world
        self.http = http

    async def send(self, hostile: Hostile) -> httpx.Response:
        headers = {"authorization": "Bearer admin-secret", "content-type": "application/json"}
        given = {name: value for name, value in (headers | hostile.headers).items() if value}
        raw = isinstance(hostile.body, bytes)
        body: Any = {"content": hostile.body} if raw else {"json": hostile.body}
        return await self.http.request(hostile.method, hostile.path, headers=given, **body)

    async def state(self) -> dict[str, Any]:
        """Everything in which a change would be seen."""
        world = self.world
        files = [path for path in world.folder.rglob("*") if "choir.db" not in path.name]
        return {
            "ensembles": [each.model_dump_json() for each in await world.controller.ensembles()],
            "rollouts": await world.controller.rollouts(),
            "routed": world.routed(),
            "held": world.holding(),
            "files": {path: path.lstat().st_size for path in files},
        }

    async def check(self, hostile: Hostile) -> str:
        """Send a request, and check that it is refused and changes nothing. Returns the message."""
        before = await self.state()
        answer = await self.send(hostile)
        message = str(refused(answer, hostile.status, hostile.says)["message"])
        assert len(message) > 15, "it is a sentence"
        for secret in ("Traceback", "hunter2", "-secret"):
            assert secret not in answer.text
        assert await self.state() == before
        good = Hostile(PREDICT, 200, "", {"model": "intents", "input": "x"})
        assert (await self.send(good)).status_code == 200
        return message


@pytest.fixture
async def server(world: World) -> AsyncIterator[Server]:
    world.options = {"adapter_prefixes": [Location.parse("s3://team")]}
    await world.start()
    settings = Settings.model_validate(
        {"bundles": [Path("bundle")], "tokens": TOKENS, "max_body_mb": 1}
    )
    app = create_app(FakeEngines(), world.controller, world.gateways[0], settings)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8000") as http:
        yield Server(world, http)


@pytest.mark.parametrize(
    ("spoil", "says"), [(spoil, says) for _, spoil, says in ADAPTERS], ids=[a[0] for a in ADAPTERS]
)
async def test_adapters(server: Server, spoil: Spoil, says: str) -> None:
    folder = make_adapter(server.world.folder / "new" / "evil", 100)
    spoil(folder)
    message = await server.check(Hostile(SWAP, 400, says, {"members": {"a": folder.as_uri()}}))
    latest = (await server.world.controller.audit())[0]
    assert (latest.actor, latest.outcome, latest.reason) == (
        "a-admin, from 127.0.0.1",
        "refused",
        message,
    )


@pytest.mark.parametrize(("uri", "status", "says"), URIS, ids=[uri[:40] for uri, _, _ in URIS])
async def test_uris(server: Server, uri: str, status: int, says: str) -> None:
    new = server.world.folder / "new"
    make_adapter(server.world.folder / "outside", 101)
    (new / "link").symlink_to(server.world.folder / "outside")
    (new / "one.zip").write_bytes(b"PK\x03\x04")
    await server.check(Hostile(SWAP, status, says, {"members": {"a": uri.format(new=new)}}))


@pytest.mark.parametrize(
    ("changes", "status", "says"),
    [rest for _, *rest in MANIFESTS],
    ids=[manifest[0] for manifest in MANIFESTS],
)
async def test_manifests(server: Server, changes: dict[str, Any], status: int, says: str) -> None:
    first = server.world.bundles[0].ensemble("intents")
    manifest = first.model_dump(mode="json", exclude_none=True) | changes
    hostile = Hostile(SWAP, status, says, {"manifest": manifest})
    if "scores" in changes:
        hostile = replace(hostile, body=_with_a_number_beyond_floats(manifest))
    await server.check(hostile)


@pytest.mark.parametrize("name", REQUESTS)
async def test_requests(server: Server, name: str) -> None:
    await server.check(REQUESTS[name])


def _with_a_number_beyond_floats(manifest: dict[str, Any]) -> bytes:
    import json

    return json.dumps({"manifest": manifest}).replace("Infinity", "1e999").encode()

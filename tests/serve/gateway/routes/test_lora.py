"""LoRAs loaded and unloaded in the words of vLLM, with a real controller, store and database; only vLLM is faked."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from serve.config.settings import Settings
from serve.errors import Refusal
from serve.gateway.app import create_app
from tests.serve.fakes import make_bundle, until
from tests.serve.gateway.conftest import Gateway, Start, refused
from tests.serve.gateway.fakes import FakeEngines
from tests.serve.world import World, world

__all__ = ["world"]

LOAD, UNLOAD = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"


@pytest.fixture
async def http(world: World) -> AsyncIterator[httpx.AsyncClient]:
    """A server of `intents` with the members a and b, `mood` with a, b and c, and `sql` with a alone."""
    world.bundles = [
        make_bundle(world.folder / "bundle", "intents"),
        make_bundle(world.folder / "three", "mood", members=3, seed=5),
        make_bundle(world.folder / "one", "sql", members=1, seed=9),
    ]
    world.slots = 16
    await world.start(engines=2)
    settings = Settings.model_validate({"bundles": [Path("bundle")]})
    app = create_app(FakeEngines(), world.controller, world.gateways[0], settings)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8000") as client:
        yield client


def path(world: World, seed: int) -> str:
    """The folder of an adapter with content of its own."""
    return world.new_adapter(seed).removeprefix("file://")


async def load(http: httpx.AsyncClient, name: str, where: str, **more: Any) -> httpx.Response:
    return await http.post(LOAD, json={"lora_name": name, "lora_path": where, **more})


async def unload(http: httpx.AsyncClient, name: str) -> httpx.Response:
    return await http.post(UNLOAD, json={"lora_name": name})


async def version(http: httpx.AsyncClient, name: str) -> int:
    """The version that answers the next request."""
    answer = await http.post("/v1/predict", json={"model": name, "input": "x"})
    assert answer.status_code == 200, answer.text
    return int(answer.headers["x-choir-model"].partition("@")[2].partition("/")[0])


async def test_an_ensemble_of_one_member_is_loaded_and_unloaded(
    http: httpx.AsyncClient, world: World
) -> None:
    answer = await load(http, "sql", path(world, 101))
    assert answer.status_code == 200, answer.text
    assert answer.text == "Success: LoRA adapter 'sql' added successfully."
    assert answer.headers["content-type"].startswith("text/plain")
    assert await version(http, "sql") == 2
    rollouts = (await http.get("/v1/rollouts")).json()
    assert rollouts["data"][0]["uris"] == {"a": [world.new_adapter(101)]}
    assert rollouts["audit"][0]["actor"] == "no token, from 127.0.0.1"

    refused(await load(http, "sql", path(world, 102)), 400, "already been loaded")
    assert await version(http, "sql") == 2
    assert (await load(http, "sql", path(world, 102), load_inplace=True)).status_code == 200
    assert await version(http, "sql") == 3

    gone = await unload(http, "sql")
    assert (gone.status_code, gone.text) == (
        200,
        "Success: LoRA adapter 'sql' removed successfully.",
    )
    assert await version(http, "sql") == 1
    refused(await unload(http, "sql"), 404, "came with")
    assert (await load(http, "sql", path(world, 102))).status_code == 200


@pytest.mark.parametrize("name", ["mood/b", "mood/a"])
async def test_one_member_of_an_ensemble(http: httpx.AsyncClient, world: World, name: str) -> None:
    assert (await load(http, name, world.new_adapter(103))).status_code == 200
    view = (await http.get("/v1/ensembles/mood")).json()
    loaded = {each["name"]: each["adapters"][0]["uri"] for each in view["members"]}
    other = "b" if name == "mood/a" else "a"
    assert loaded[name[-1]] == world.new_adapter(103)
    assert loaded[other] != world.new_adapter(103)
    assert await version(http, name) == 2
    assert (await unload(http, name)).status_code == 200
    assert await version(http, name) == 1


async def test_a_members_name_will_do_where_one_ensemble_has_it(
    http: httpx.AsyncClient, world: World
) -> None:
    refused(await load(http, "b", path(world, 104)), 400, "intents/b, mood/b")
    assert (await load(http, "c", path(world, 104))).status_code == 200
    assert await version(http, "mood/c") == 2
    error = refused(await load(http, "mood/nobody", path(world, 104)), 404, "mood/nobody")
    assert error["param"] == "lora_name"


async def test_a_member_is_not_unloaded_with_another_ones_adapter(
    http: httpx.AsyncClient, world: World
) -> None:
    await load(http, "mood/a", path(world, 105))
    await load(http, "mood/b", path(world, 106))
    refused(await unload(http, "mood/a"), 409, "b were swapped too")
    assert await version(http, "mood") == 3


async def test_places_and_names_that_cannot_be_loaded(
    http: httpx.AsyncClient, world: World
) -> None:
    missing = refused(await load(http, "sql", f"{world.folder}/new/none"), 404, "no folder")
    assert missing["param"] == "lora_path"
    refused(await load(http, "sql", "/etc"), 403, "outside")
    refused(await load(http, "sql", "adapters/new"), 400, "absolute path")
    refused(await load(http, "intents", path(world, 107)), 400, "intents/a, intents/b")
    refused(await load(http, "intents/z", path(world, 107)), 404, "intents/z")
    refused(await load(http, "sql@1", path(world, 107)), 404)
    refused(await load(http, "", path(world, 107)), 400, "lora_name")
    refused(await load(http, "sql", ""), 400, "lora_path")
    refused(await load(http, "sql", path(world, 107), is_3d_lora_weight=True), 400, "is_3d")
    refused(await http.post(LOAD, json={"lora_name": "sql"}), 400, "lora_path")
    empty = world.folder / "new" / "empty"
    empty.mkdir()
    refused(await load(http, "sql", str(empty)), 400, "no file of an adapter")
    broken = Path(path(world, 108))
    (broken / "adapter_model.safetensors").write_bytes(b"no tensors")
    refused(await load(http, "sql", str(broken)), 400)
    refused(await unload(http, "nobody"), 404)
    for name in ("sql", "intents", "mood"):
        assert await version(http, name) == 1


async def test_an_adapter_that_engines_cannot_prepare_changes_nothing(
    http: httpx.AsyncClient, world: World
) -> None:
    for engine in world.engines:
        engine.broken["sql@2"] = "it has no effect"
    refused(await load(http, "sql", path(world, 109)), 400, "no effect")
    assert await version(http, "sql") == 1


async def test_it_needs_an_admin(start: Start) -> None:
    gateway: Gateway = await start(admin_token="secret")
    for where in (LOAD, UNLOAD):
        body = {"lora_name": "sql", "lora_path": "/x"}
        assert refused(await gateway.http.post(where, json=body), 401)
    assert gateway.control.asked == []


async def models(http: httpx.AsyncClient) -> set[str]:
    return {each["id"] for each in (await http.get("/v1/models")).json()["data"]}


async def test_a_new_name_is_an_ensemble_until_it_is_unloaded(
    http: httpx.AsyncClient, world: World
) -> None:
    before = await models(http)
    answer = await load(http, "poems", path(world, 201))
    assert answer.text == "Success: LoRA adapter 'poems' added successfully."
    assert await models(http) - before >= {"poems"}
    assert all("poems@2" in engine.held for engine in world.engines)
    view = (await http.get("/v1/ensembles/poems")).json()
    assert (view["task"], [each["name"] for each in view["members"]]) == ("generation", ["poems"])
    assert view["members"][0]["adapters"][0]["uri"] == world.new_adapter(201)
    body = {"model": "poems", "prompt": "x"}
    answered = await http.post("/v1/completions", json=body)
    assert (answered.status_code, answered.headers["x-choir-model"]) == (200, "poems@2")

    active = b'choir_active_version{ensemble="poems",replica="0"}'
    assert active + b" 2.0" in await world.controller.metrics()

    refused(await http.post("/v1/completions", json={**body, "model": "poems@1"}), 404)
    refused(await load(http, "poems", path(world, 202)), 400, "already been loaded")
    assert (await load(http, "poems", path(world, 202), load_inplace=True)).status_code == 200

    gone = await unload(http, "poems")
    assert gone.text == "Success: LoRA adapter 'poems' removed successfully."
    assert await models(http) == before
    refused(await http.post("/v1/completions", json=body), 404)
    refused(await http.get("/v1/ensembles/poems"), 404)
    refused(await unload(http, "poems"), 404, "cannot be found")
    assert active not in await world.controller.metrics()
    await until(lambda: not any(key.startswith("poems@") for e in world.engines for key in e.held))

    assert (await load(http, "poems", path(world, 201))).status_code == 200
    again = await http.post("/v1/completions", json=body)
    assert again.headers["x-choir-model"].startswith("poems@")
    assert again.headers["x-choir-model"] not in ("poems@1", "poems@2", "poems@3")


async def test_a_new_name_whose_adapter_is_refused_does_not_exist(
    http: httpx.AsyncClient, world: World
) -> None:
    before = await models(http)
    for engine in world.engines:
        engine.broken["poems@2"] = "it has no effect"
    refused(await load(http, "poems", path(world, 203)), 400, "no effect")
    refused(await load(http, "poems", f"{world.folder}/new/none"), 404, "no folder")
    for name in ("Poems", ".poems", "p" * 64):
        refused(await load(http, name, path(world, 203)), 400, "cannot be a new name")
    assert await models(http) == before
    listed = (await http.get("/v1/ensembles")).json()["data"]
    assert [each["name"] for each in listed] == ["intents", "mood", "sql"]
    trial = {"members": {"poems": world.new_adapter(203)}, "strategy": {"kind": "canary"}}
    refused(await http.post("/v1/ensembles/poems/swap", json=trial), 400, "leave 'strategy' out")


async def test_what_is_loaded_under_a_new_name_outlives_a_prune_and_the_controller(
    http: httpx.AsyncClient, world: World
) -> None:
    for seed in (204, 206, 207, 208):
        answer = await load(http, "poems", path(world, seed), load_inplace=True)
        assert answer.status_code == 200, answer.text
    await until(lambda: all(engine.held.keys() & {"poems@5"} for engine in world.engines))
    everything = {"keep_versions": 1, "keep_days": 0, "dry_run": False}
    pruned = await http.post("/v1/prune", json=everything)
    assert (pruned.status_code, "poems" in pruned.text) == (200, True), pruned.text
    assert (await load(http, "gone", path(world, 205))).status_code == 200
    assert (await unload(http, "gone")).status_code == 200
    before = await models(http)
    await world.kill_controller()
    await world.start_controller()
    assert await models(http) == before
    names = [each.name for each in await world.controller.ensembles()]
    assert names == ["intents", "mood", "poems", "sql"]
    view = await world.controller.ensemble("poems")
    assert not isinstance(view, Refusal)
    # 1 is what an unload returns to.
    assert (view.active_version, view.bundle_version) == (5, 1)

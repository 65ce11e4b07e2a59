"""What a swap may bring in, and the message for everything else. A refused request changes nothing."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from safetensors.numpy import load_file, save_file

from serve.bundle import BaseSpec, Bundle
from serve.control.admission.admission import check_gates
from serve.control.artifacts.sources import Sources
from serve.control.artifacts.store import Store
from serve.digest import folder_digest
from serve.errors import Refusal, RefusedError
from serve.protocol.requests import SwapRequest
from serve.protocol.strategy import Strategy
from serve.protocol.views import EnsembleView
from tests.serve.fakes import FakeEngine, make_adapter, make_bundle
from tests.serve.world import World, committed, refused


def spoil_values(folder: Path) -> None:
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    next(iter(tensors.values()))[0, 0] = np.nan
    save_file(tensors, file)


def spoil_rank(folder: Path) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"r": 128}))


def link_weights(folder: Path) -> None:
    file = folder / "adapter_model.safetensors"
    elsewhere = folder.parent / f"{folder.name}.elsewhere"
    file.rename(elsewhere)
    file.symlink_to(elsewhere)


def make_fifo(folder: Path) -> None:
    os.mkfifo(folder / "README.md")


def leave_a_trainers_files(folder: Path) -> None:
    for name in (
        "optimizer.pt",
        "scheduler.pt",
        "rng_state.pth",
        "training_args.bin",
        "tokenizer.model",
        "checkpoint-7/adapter_model.safetensors",
        "checkpoint-7/optimizer.pt",
        "global_step7/mp_rank_00_model_states.pt",
        "runs/events.out.tfevents",
    ):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"\x80\x04.")
    (folder / "latest").symlink_to("checkpoint-7")


def fill_up(folder: Path) -> None:
    for number in range(101):
        (folder / f"{number}.txt").touch()


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (spoil_values, "finite|NaN"),
        (spoil_rank, "rank"),
        (link_weights, "link"),
        (make_fifo, "no regular file"),
        (fill_up, "at most 100 files"),
        (lambda folder: (folder / "adapter_config.json").unlink(), "adapter_config.json"),
    ],
)
async def test_a_bad_adapter_is_refused_and_leaves_nothing_behind(
    world: World, spoil: Any, says: str
) -> None:
    await world.start()
    before = sorted(path.name for path in (world.store / "artifacts").iterdir())
    uri = world.new_adapter(100)
    spoil(world.folder / "new" / "100")

    message = refused(await world.ask({"members": {"a": uri}}), 400)

    assert any(part in message for part in says.split("|")), message
    assert sorted(path.name for path in (world.store / "artifacts").iterdir()) == before
    assert world.engines[0].prepared == ["intents@1"]
    assert await world.active() == 1
    assert committed(await world.swap(101)).to_version == 2


async def test_a_member_changes_the_kind_of_its_adapters(world: World) -> None:
    await world.start()
    prompt, lora = world.new_prompt_adapter(7), world.new_adapter(100)
    for uris, names in (
        (prompt, ["intents-a"]),
        ([lora, prompt], ["intents-a", "a-2"]),
        (lora, ["intents-a"]),
    ):
        committed(await world.ask({"members": {"a": uris}}))
        view = await world.controller.ensemble("intents")
        assert isinstance(view, EnsembleView)
        assert [ref.adapter for ref in view.members[0].adapters] == names


async def test_two_adapters_of_one_sort_make_no_member(world: World) -> None:
    await world.start()
    loras = [world.new_adapter(100), world.new_adapter(101)]
    prompts = [world.new_prompt_adapter(7), world.new_prompt_adapter(8)]
    for uris, says in ((loras, "two LoRAs"), (prompts, "one prefix or prompt adapter")):
        assert says in refused(await world.ask({"members": {"a": uris}}), 400)
    three = [loras[0], *prompts]
    assert "one prefix or prompt" in refused(await world.ask({"members": {"a": three}}), 400)
    assert await world.active() == 1


async def test_an_adapter_of_another_base_is_refused(world: World) -> None:
    await world.start()
    uri = world.new_adapter(100, hidden=16)
    assert "base" in refused(await world.ask({"members": {"a": uri}}), 400)


@pytest.mark.parametrize(
    ("uri", "status"),
    [
        ("file:///etc", 403),
        ("file:///does/not/exist", 403),
        ("file://{roots}/../outside", 403),
        ("file://{roots}/%2e%2e/outside", 403),
        ("file://{roots}/link", 403),
        ("file://{roots}/missing", 400),
        ("file://elsewhere{roots}/100", 400),
        ("file:relative", 400),
        ("file://{roots}/100?x=1", 400),
        ("s3://bucket/adapter", 403),
        ("https://example.org/adapter", 400),
        ("{roots}/100", 400),
        ("file://{roots}/a%00b", 400),
    ],
)
async def test_adapters_come_from_the_allowed_folders_only(
    world: World, uri: str, status: int
) -> None:
    await world.start()
    world.new_adapter(100)
    make_adapter(world.folder / "outside", 101)
    (world.folder / "new" / "link").symlink_to(world.folder / "outside")

    uri = uri.format(roots=world.folder / "new")
    message = refused(await world.ask({"members": {"a": uri}}), status)

    assert message.endswith(".")
    assert await world.active() == 1


async def test_adapters_may_come_from_the_bundles(world: World) -> None:
    await world.start()
    first = world.bundles[0].ensemble("intents")
    folder = world.bundles[0].adapter_dir(first.members[1].adapters[0])
    committed(await world.ask({"members": {"a": folder.as_uri()}}))
    held = world.engines[0].held["intents@2"].ensemble
    assert held.members[0].adapters[0].digest == first.members[1].adapters[0].digest


async def test_what_is_served_is_a_copy_with_the_digest_of_the_source(world: World) -> None:
    await world.start()
    uri = world.new_adapter(100)
    source = world.folder / "new" / "100"
    digest = folder_digest(source)
    committed(await world.ask({"members": {"a": uri}}))
    spoil_values(source)

    version = world.engines[0].held["intents@2"]
    assert version.ensemble.members[0].adapters[0].digest == digest
    assert folder_digest(version.adapters[digest]) == digest
    await world.add_engine()
    assert "intents@2" in world.engines[1].held


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"members": {}},
        {"members": {"a": "file:///x"}, "version": 1},
        {"members": {"a": ""}},
        {"members": {"a": 3}},
        {"version": 0},
        {"version": "1"},
        {"version": True},
        {"version": 1, "allow_stale_fusion": True},
        {"version": 1, "expected_version": 0},
        {"version": 1, "strategy": {"kind": "sudden"}},
        {"version": 1, "strategy": {"kind": "immediate", "share": 1}},
        {"version": 1, "strategy": {"kind": "canary", "share": 0}},
        {"version": 1, "strategy": {"kind": "canary", "share": 1.5}},
        {"version": 1, "strategy": {"kind": "canary", "shares": 0.5}},
        {"version": 1, "strategy": {"kind": "canary", "auto_promote": "yes"}},
        {"version": 1, "strategy": {"kind": "canary", "gates": {"min_requests": 0}}},
        {"version": 1, "strategy": {"kind": "canary", "gates": {"min_requests": 1.5}}},
        {"version": 1, "strategy": {"kind": "shadow", "gates": {"min_agreement": 2}}},
        {"version": 1, "strategy": {"kind": "shadow", "gates": {"max_error_rate": -1}}},
        {"version": 1, "strategy": {"kind": "shadow", "gates": {"max_seconds": 0}}},
        {"version": 1, "strategy": {"kind": "shadow", "gates": {"max_errors": 0}}},
        {
            "version": 1,
            "strategy": {"kind": "canary", "share": 1, "gates": {"max_latency_ratio": 1}},
        },
        {"version": 1, "unknown": 1},
    ],
)
def test_malformed_requests_are_refused(body: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        SwapRequest.model_validate(body)


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        ({"members": {"z": "file:///x"}}, 400, "no member 'z'; its members are a, b"),
        ({"version": 9}, 404, "no version 9; it has 1"),
        ({"version": 1}, 409, "active already"),
        ({"manifest": {"task": "classification"}}, 400, "manifest"),
    ],
)
async def test_requests_that_cannot_be_served_say_why(
    world: World, body: dict[str, Any], status: int, says: str
) -> None:
    await world.start()
    assert says in refused(await world.ask(body), status)


async def test_an_unknown_ensemble_is_a_404(world: World) -> None:
    await world.start()
    assert "there are intents" in refused(await world.ask({"version": 1}, name="nothing"), 404)
    assert isinstance(await world.controller.ensemble("nothing"), Refusal)
    assert isinstance(await world.controller.rollout("nothing"), Refusal)


async def test_the_view_of_an_ensemble_says_what_is_where(world: World) -> None:
    await world.start()
    committed(await world.swap(100))
    world.engines[0].gate.clear()
    await world.swap(101, wait=False)

    view = (await world.controller.ensembles())[0]

    assert (view.name, view.active_version, view.previous) == ("intents", 2, [1])
    assert [(each.version, each.role) for each in view.versions] == [
        (1, "warm"),
        (2, "active"),
        (3, "candidate"),
    ]
    assert view.versions[1].source == "ada"
    assert view.digests == view.versions[1].digests
    assert view.rollout is not None
    dumped = view.model_dump(by_alias=True)["rollout"]
    assert (dumped["from"], dumped["to"], dumped["state"]) == (2, 3, "preparing")
    world.engines[0].gate.set()


async def test_a_changed_artifact_is_found_before_it_is_used_again(world: World) -> None:
    await world.start()
    committed(await world.swap(100))
    digest = folder_digest(world.folder / "new" / "100")
    artifact = world.store / "artifacts" / digest.removeprefix("sha256:")
    committed(await world.rollback())
    (artifact / "README.md").write_text("changed")

    assert "has changed in the store" in refused(await world.ask({"version": 2}), 400)
    assert await world.active() == 1


def test_files_in_the_store_are_read_only(tmp_path: Path) -> None:
    source = make_adapter(tmp_path / "source", 1)
    store = Store(tmp_path / "store")
    with store.scratch() as copy:
        Sources([tmp_path]).fetch(source.as_uri(), copy)
        digest = store.keep(copy)
    modes = {file.stat().st_mode & 0o777 for file in store.adapter(digest).iterdir()}
    assert modes == {0o444}
    assert [path.name for path in (tmp_path / "store" / "artifacts").iterdir()] == [
        digest.removeprefix("sha256:")
    ]


def test_what_a_killed_server_left_half_copied_is_cleared_away(tmp_path: Path) -> None:
    with Store(tmp_path).scratch() as half:
        (half / "adapter_model.safetensors").touch()
        Store(tmp_path)
        assert list((tmp_path / "artifacts").iterdir()) == []


async def test_a_store_that_cannot_be_written_is_said_in_a_sentence(world: World) -> None:
    world.bundles = [make_bundle(world.folder / "bundle")]
    world.store.write_text("in the way")
    with pytest.raises(ValueError, match="choose another --store"):
        await world.start_controller()


async def test_a_broken_engine_message_reaches_the_user_once(world: World) -> None:
    await world.start(engines=0)
    engine = FakeEngine()
    engine.broken["intents@2"] = "the task regression is not served yet."
    await world.add_engine(engine)
    message = refused(await world.swap(100), 400)
    assert message.startswith("Nothing has changed: ")
    assert message.count("not served yet") == 1


async def test_more_members_than_allowed_are_refused(world: World) -> None:
    await world.start()
    manifest = world.bundles[0].ensemble("intents").model_dump(mode="json", exclude_none=True)
    manifest["members"] = [manifest["members"][0] | {"name": f"m{n}"} for n in range(65)]
    message = refused(await world.ask({"manifest": manifest}), 400)
    assert "65 members; at most 64" in message


def test_values_are_not_judged_by_agreement() -> None:
    strategy = Strategy.model_validate({"kind": "shadow", "gates": {"min_agreement": 0.9}})
    check_gates("multilabel", strategy)
    check_gates("regression", Strategy.model_validate({"kind": "shadow"}))
    with pytest.raises(RefusedError) as refusal:
        check_gates("regression", strategy)
    assert refusal.value.refusal.param == "strategy.gates.min_agreement"


async def test_a_trainers_folder_is_taken_as_packing_takes_it(world: World) -> None:
    await world.start()
    uri = world.new_adapter(100)
    plain = folder_digest(world.folder / "new" / "100")
    leave_a_trainers_files(world.folder / "new" / "100")
    packed = Bundle.create(world.folder / "packed", BaseSpec(path="base"))
    assert packed.add_adapter("a", world.folder / "new" / "100").digest == plain
    committed(await world.ask({"members": {"a": uri}}))
    held = world.engines[0].held[f"intents@{await world.active()}"].ensemble
    assert held.members[0].adapters[0].digest == plain
    copy = world.store / "artifacts" / plain.removeprefix("sha256:")
    assert {file.name for file in copy.rglob("*")} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }

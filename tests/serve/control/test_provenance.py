"""What is live, and where it came from: in the views, in rollouts and in the audit, after restarts too."""

from pathlib import Path
from typing import Any

import pytest

from serve.bundle import Bundle
from serve.errors import Refusal
from serve.location import without_secrets
from serve.protocol.audit import AuditEntry
from serve.protocol.requests import SwapRequest
from serve.protocol.views import AdapterView, EnsembleView
from tests.serve.fakes import make_adapter, make_bundle, until
from tests.serve.world import SHORT_LEASE, World, committed, refused


async def view_of(world: World) -> EnsembleView:
    view = await world.controller.ensemble("intents")
    assert not isinstance(view, Refusal)
    return view


async def adapters_of(world: World) -> dict[str, AdapterView]:
    return {member.name: member.adapters[0] for member in (await view_of(world)).members}


async def latest(world: World) -> AuditEntry:
    audit = await world.controller.audit()
    assert not isinstance(audit, Refusal)
    return audit[0]


async def restart(world: World) -> None:
    await world.kill_controller()
    await world.start_controller()


def in_bundle(bundle: Bundle, member: str) -> str:
    [ref] = next(
        each for each in bundle.ensemble("intents").members if each.name == member
    ).adapters
    return bundle.adapter_dir(ref).as_uri()


async def test_an_adapter_says_who_swapped_it_in_from_where_and_when(world: World) -> None:
    world.options["lease_seconds"] = SHORT_LEASE  # what follows a restart waits for one
    await world.start()
    first = await adapters_of(world)
    rollout = committed(await world.swap(100))

    for _ in range(2):
        now = await adapters_of(world)
        assert now["a"].uri == world.new_adapter(100)
        assert (now["a"].swapped_by, now["a"].digest != first["a"].digest) == ("ada", True)
        assert now["a"].swapped_at is not None
        assert now["a"].swapped_at[:16] <= rollout.updated[:16]
        assert now["b"] == first["b"]
        assert now["b"].uri == in_bundle(world.bundles[0], "b")
        assert (now["b"].swapped_by, now["b"].swapped_at) == (None, None)
        await restart(world)

    committed(await world.rollback())
    assert await adapters_of(world) == first


async def test_content_that_is_swapped_in_again_says_where_it_came_from_now(world: World) -> None:
    await world.start()
    again = in_bundle(world.bundles[0], "a")
    committed(await world.ask({"members": {"a": again}}))
    now = await adapters_of(world)
    assert (now["a"].uri, now["a"].swapped_by) == (again, "ada")
    assert (await latest(world)).uris == {"a": [again]}


async def test_the_adapters_of_a_manifest_are_found_where_they_were(world: World) -> None:
    await world.start()
    committed(await world.swap(100))
    manifest = world.bundles[0].ensemble("intents").model_dump(mode="json", exclude_none=True)
    a, b = manifest["members"]
    new = (await adapters_of(world))["a"]
    ref = {"adapter": "intents-a", "digest": new.digest}
    # `b` gets what `a` has, `a` what it had at first, and `c` stays what `b` was.
    manifest["members"] = [a, {**b, "adapters": [ref]}, {**b, "name": "c"}]
    committed(await world.ask({"manifest": manifest}))

    now = await adapters_of(world)
    assert [now[name].uri for name in "abc"] == [
        in_bundle(world.bundles[0], "a"),
        world.new_adapter(100),
        in_bundle(world.bundles[0], "b"),
    ]
    assert {now[name].swapped_by for name in "abc"} == {"ada"}


async def test_every_change_is_in_the_audit_with_who_what_when_from_to_outcome_and_uris(
    world: World,
) -> None:
    await world.start()
    swapped, tried, refused_uri = (world.new_adapter(seed) for seed in (100, 101, 102))
    committed(await world.swap(100))

    canary: dict[str, Any] = {"kind": "canary", "gates": {"min_requests": 1, "max_seconds": 0.05}}
    body = SwapRequest.model_validate({"members": {"a": tried}, "strategy": canary})
    aborted = await world.controller.swap("intents", body, "eve", True)
    assert "0.05" in refused(aborted, 409)
    committed(await world.rollback())
    refused(await world.swap(102, expected_version=9), 409)

    await world.kill_controller()
    other = make_bundle(world.folder / "other", seed=50)
    world.bundles = [other]
    await world.start_controller()

    audit = await world.controller.audit()
    assert not isinstance(audit, Refusal)
    lines = [
        (each.actor, each.action, each.from_version, each.to_version, each.outcome, each.uris)
        for each in reversed(audit)
        if each.outcome != "done"
    ]
    from_bundle = {name: [in_bundle(other, name)] for name in "ab"}
    first = {"a": [in_bundle(Bundle.open(world.folder / "bundle"), "a")]}
    assert lines == [
        ("ada", "swap", 1, 2, "committed", {"a": [swapped]}),
        ("eve", "swap", 2, 3, "aborted", {"a": [tried]}),
        ("ada", "rollback", 2, 1, "committed", first),
        ("ada", "swap", 1, None, "refused", {"a": [refused_uri]}),
        ("choir", "start", 1, 4, "not active", from_bundle),
    ]
    assert all(each.at > "2026" for each in audit)
    brought = [each for each in audit if each.action == "import" and each.to_version == 4]
    assert [each.uris for each in brought] == [from_bundle]


async def test_a_rollout_says_which_adapters_it_brings(world: World) -> None:
    await world.start()
    rollout = committed(await world.swap(100))
    assert rollout.uris == {"a": [world.new_adapter(100)]}
    await restart(world)
    listed = await world.controller.rollouts()
    assert not isinstance(listed, Refusal)
    assert listed[0].uris == rollout.uris


async def test_another_bundle_under_the_same_number_is_told_and_can_be_swapped_in(
    world: World,
) -> None:
    world.options["lease_seconds"] = SHORT_LEASE  # what follows a restart waits for one
    await world.start()
    served = await view_of(world)
    assert (served.differences, served.bring_in) == ([], None)
    other = make_bundle(world.folder / "other", seed=50)
    world.bundles = [other]
    for _ in range(2):
        await restart(world)
        view = await view_of(world)
        assert view.active_version == 1
        assert (len(view.versions), view.bring_in) == (2, "choir swap intents --version 2")
        [said] = view.differences
        new = [
            each.digest for member in other.ensemble("intents").members for each in member.adapters
        ]
        for digest in (*served.digests, *new):
            assert digest.removeprefix("sha256:")[:12] in said
        assert "version 1 " in said
        assert "version 2," in said
        assert str(other.path) in said

    await until(lambda: bool(world.controller._participants.live("engine")))
    assert committed(await world.ask({"version": 2})).to_version == 2
    view = await view_of(world)
    assert (view.digests, view.differences, view.bring_in) == (new, [], None)
    await restart(world)
    assert ((await view_of(world)).differences, (await view_of(world)).bring_in) == ([], None)


async def test_a_start_with_other_adapter_folders_names_these(world: World) -> None:
    """As `choir serve --base --adapter` does, whose bundle is gone when it ends."""
    world.options["lease_seconds"] = SHORT_LEASE  # what follows a restart waits for one
    await world.start()
    other = make_bundle(world.folder / "other", seed=50)
    folders = {}
    for member in other.ensemble("intents").members:
        [ref] = member.adapters
        folders[member.name] = world.folder / f"other-intents-{member.name}"
        other.record_source(ref, folders[member.name])
    world.bundles = [other]
    await restart(world)

    view = await view_of(world)
    assert view.bring_in == "choir swap intents --version 2"
    for folder in folders.values():
        assert folder.as_uri() in view.differences[0]
    assert str(other.path) + ")" not in view.differences[0]
    await until(lambda: bool(world.controller._participants.live("engine")))
    assert committed(await world.ask({"version": 2})).uris == {
        name: [folder.as_uri()] for name, folder in folders.items()
    }


async def test_a_start_with_the_bundle_of_before_a_swap_is_told_too(world: World) -> None:
    world.options["lease_seconds"] = SHORT_LEASE  # what follows a restart waits for one
    await world.start()
    committed(await world.swap(100))
    await restart(world)
    view = await view_of(world)
    assert view.bring_in == "choir swap intents --version 1"
    assert len(view.versions) == 2
    committed(await world.swap(101))
    assert (await view_of(world)).bring_in is None, "somebody has chosen since"


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("file:///data/a@b", "file:///data/a@b"),
        ("file:///data/a?token=hunter2", "file:///data/a?***"),
        ("file://ann:hunter2@host/a", "file://***@host/a"),
        ("s3://team/a@2", "s3://team/a@2"),
        ("hf://org/name@v2/a", "hf://org/name@v2/a"),
        ("s3://KEY:hun/ter?2@team/a", "s3://***@team/a"),
        ("hf://hunter2@org/name@v2", "hf://***@v2"),
        ("https://ann:hunter2@host/a?sig=hunter2#hunter2", "https://***@host/a?***"),
        ("https://host/a#hunter2", "https://host/a#***"),
        ("simplecache::s3://KEY:hunter2@team/a", "simplecache::s3://***@team/a"),
        ("ann:hunter2@host", "***@host"),
        ("/data/a", "/data/a"),
        ("nonsense", "nonsense"),
    ],
)
def test_a_uri_is_shown_without_secrets(uri: str, shown: str) -> None:
    assert without_secrets(uri) == shown


async def test_a_refused_uri_shows_no_secret_in_the_audit(world: World, tmp_path: Path) -> None:
    await world.start()
    make_adapter(tmp_path / "elsewhere", 7)
    for uri in ("https://ann:hunter2@host/a?sig=hunter2", "file://ann:hunter2@host/a"):
        said = refused(await world.ask({"members": {"a": uri}}), 400)
        entry = await latest(world)
        assert "hunter2" not in said + str(entry)
        assert "host/a" in entry.uris["a"][0]

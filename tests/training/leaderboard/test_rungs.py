"""Rungs in a bundle: manifests that a swap takes, with their adapters, under the ensemble's name."""

import json
from pathlib import Path

import pytest

from serve.bundle import BundleError
from serve.manifest import AdapterRef, FusionSpec, Member
from tests.serve.fakes import make_adapter, make_bundle
from tests.serve.world import World, committed
from training.leaderboard.board import RungKind
from training.leaderboard.rungs import read_rungs, rung_file, write_rung


def rung_of(world: World, kind: RungKind = "merged") -> Path:
    """Add an adapter to the world's bundle, and the rung that answers with it alone."""
    bundle = world.bundles[0]
    ref = bundle.add_adapter("intents-cat", make_adapter(world.folder / "cat", 9, rank=4))
    manifest = bundle.ensemble("intents").model_copy(
        update={
            "members": [Member(name="cat", adapters=[ref])],
            "fusion": FusionSpec(method="average", temperature=1.5),
            "golden": [],
        }
    )
    return write_rung(bundle, "cat", kind, manifest, {"method": "cat"})


async def test_a_server_takes_a_rung_as_it_lies_in_the_bundle(world: World) -> None:
    world.bundles = [make_bundle(world.folder / "bundle")]
    file = rung_of(world)
    assert world.bundles[0].verify(deep=False) == []

    await world.start()
    assert world.engines[0].held.keys() == {"intents@1"}, "a rung is not imported"
    assert committed(await world.ask({"manifest": json.loads(file.read_text())})).to_version == 2

    served = world.engines[0].held["intents@2"].ensemble
    assert [member.name for member in served.members] == ["cat"]
    assert served.fusion.temperature == 1.5


def test_rungs_are_read_with_their_kind_and_their_note(world: World) -> None:
    world.bundles = [make_bundle(world.folder / "bundle")]
    bundle = world.bundles[0]
    assert read_rungs(bundle, "intents") == []
    rung_of(world, "distilled")
    write_rung(bundle, "average", "fusion", bundle.ensemble("intents"))
    (found,) = read_rungs(bundle, "intents")
    assert (found.name, found.kind) == ("cat", "distilled")
    assert found.manifest.scores["rung"] == {"kind": "distilled", "method": "cat"}


def test_a_rung_without_its_adapter_or_with_a_path_for_a_name_is_not_written(world: World) -> None:
    bundle = make_bundle(world.folder / "bundle")
    lost = AdapterRef(adapter="lost", digest="sha256:" + "0" * 64)
    manifest = bundle.ensemble("intents").model_copy(
        update={"members": [Member(name="lost", adapters=[lost])]}
    )
    with pytest.raises(BundleError, match=lost.digest):
        write_rung(bundle, "lost", "rival", manifest)
    with pytest.raises(BundleError, match=r"'\.\./x' must match"):
        write_rung(bundle, "../x", "rival", bundle.ensemble("intents"))


def test_verify_names_what_is_wrong_with_a_rung(world: World) -> None:
    world.bundles = [make_bundle(world.folder / "bundle")]
    bundle = world.bundles[0]
    ref = read_adapter(rung_of(world))
    (bundle.adapter_dir(ref) / "README.md").write_text("written later")
    (changed,) = bundle.verify(deep=False)
    assert ref.digest in changed

    file = rung_file(bundle, "intents", "other")
    file.write_text("{}")
    other = bundle.path / "rungs" / "topics" / "cat.json"
    other.parent.mkdir()
    other.write_text(rung_file(bundle, "intents", "cat").read_text())
    problems = bundle.verify(deep=False)
    assert any("rungs/intents/other.json" in problem for problem in problems)
    assert any("must lie in rungs/intents/" in problem for problem in problems)
    with pytest.raises(BundleError, match="rungs/intents/other"):
        read_rungs(bundle, "intents")


def read_adapter(file: Path) -> AdapterRef:
    """The only adapter of the rung in `file`."""
    content = json.loads(file.read_text())
    return AdapterRef.model_validate(content["members"][0]["adapters"][0])

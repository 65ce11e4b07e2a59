"""Whole new manifests, earlier versions and equal content as what a swap brings."""

from tests.serve.fakes import LABELS, make_bundle
from tests.serve.world import World, committed, refused


async def test_a_whole_new_manifest_gets_the_next_version(world: World) -> None:
    await world.start()
    manifest = world.bundles[0].ensemble("intents").model_dump(mode="json", exclude_none=True)
    manifest |= {"members": manifest["members"][:1], "labels": [*LABELS, "maybe"]}

    assert committed(await world.ask({"manifest": manifest})).to_version == 2

    ensemble = world.engines[0].held["intents@2"].ensemble
    assert [member.name for member in ensemble.members] == ["a"]
    assert ensemble.labels == [*LABELS, "maybe"]


async def test_a_manifest_over_unknown_digests_or_another_name_is_refused(world: World) -> None:
    await world.start()
    manifest = world.bundles[0].ensemble("intents").model_dump(mode="json", exclude_none=True)
    other = "sha256:" + "0" * 64
    manifest["members"][0]["adapters"][0]["digest"] = other
    assert other in refused(await world.ask({"manifest": manifest}), 400)
    assert "'topics'" in refused(await world.ask({"manifest": manifest | {"name": "topics"}}), 400)


async def test_a_swap_to_an_earlier_version_is_a_swap_not_a_rollback(world: World) -> None:
    await world.start()
    committed(await world.swap(100))
    assert committed(await world.ask({"version": 1})).to_version == 1
    assert committed(await world.rollback()).to_version == 2


async def test_equal_content_makes_a_new_version(world: World) -> None:
    await world.start()
    committed(await world.swap(100))
    assert committed(await world.swap(100)).to_version == 3


async def test_scores_of_the_old_content_do_not_stay_with_the_new(world: World) -> None:
    bundle = make_bundle(world.folder / "bundle")
    scored = bundle.ensemble("intents").model_copy(
        update={
            "version": 2,
            "scores": {"validation": {"accuracy": 0.9}, "members": {"a": 0.7, "b": 0.8}},
        }
    )
    bundle.write_ensemble(scored)
    world.bundles = [bundle]
    await world.start()
    committed(await world.swap(100))
    # By the scores of members that stay, ties among whole answers are broken.
    assert world.engines[0].held["intents@3"].ensemble.scores == {"members": {"b": 0.8}}

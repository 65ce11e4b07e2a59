"""Which report is shown: that of the bundle of the active version, from any of several bundles."""

from pathlib import Path

import pytest

from serve.bundle import Bundle
from serve.errors import Refusal
from tests.serve.fakes import make_bundle
from tests.serve.world import World, committed


def write_page(bundle: Bundle, text: str) -> Path:
    file = bundle.path / "report" / "index.html"
    file.parent.mkdir(exist_ok=True)
    file.write_text(text)
    return file


async def test_each_ensemble_has_the_report_of_its_own_bundle(world: World) -> None:
    world.bundles = [
        make_bundle(world.folder / "one", "intents"),
        make_bundle(world.folder / "two", "replies", "topics", members=1, seed=50),
    ]
    for bundle in world.bundles:
        write_page(bundle, f"<p>{bundle.path.name}</p>")
    await world.start()
    pages = [await world.controller.report(name) for name in ("intents", "replies", "topics")]
    assert pages == [b"<p>one</p>", b"<p>two</p>", b"<p>two</p>"]


async def test_a_swapped_ensemble_keeps_the_report_of_the_bundle_it_came_from(
    world: World,
) -> None:
    world.bundles = [make_bundle(world.folder / "one")]
    write_page(world.bundles[0], "<p>one</p>")
    await world.start()
    committed(await world.swap(100))
    assert await world.controller.report("intents") == b"<p>one</p>"


@pytest.mark.parametrize("name", ["strangers", "../intents", "intents/../intents", ""])
async def test_an_unknown_name_reads_no_file(world: World, name: str) -> None:
    world.bundles = [make_bundle(world.folder / "one")]
    write_page(world.bundles[0], "<p>one</p>")
    await world.start()
    answer = await world.controller.report(name)
    assert isinstance(answer, Refusal)
    assert (answer.status, answer.code) == (404, "unknown_ensemble")


async def test_a_bundle_without_a_report_is_a_sentence(world: World) -> None:
    await world.start()
    answer = await world.controller.report("intents")
    assert isinstance(answer, Refusal)
    assert (answer.status, answer.code) == (404, "no_report")
    assert "no report on intents" in answer.message
    assert "choir train" in answer.message


async def test_a_link_out_of_the_bundle_is_not_followed(world: World) -> None:
    world.bundles = [make_bundle(world.folder / "one")]
    secret = world.folder / "secret.txt"
    secret.write_text("secret")
    (world.bundles[0].path / "report").mkdir()
    (world.bundles[0].path / "report" / "index.html").symlink_to(secret)
    await world.start()
    answer = await world.controller.report("intents")
    assert isinstance(answer, Refusal)
    assert answer.status == 404

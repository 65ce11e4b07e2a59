"""Golden inputs travel with an ensemble, and every replica answers them before it goes live."""

import asyncio
from typing import Any

import pytest

from serve.bundle import Bundle
from serve.engine.interface import PrepareError, Refusal
from tests.serve.rollout.conftest import World, committed, refused
from tests.serve.rollout.fakes import FakeEngine, make_bundle, until

GOLDEN = [{"input": "is it raining?", "label": "yes"}, {"input": {"text": "is it?"}, "label": "no"}]
RIGHT = {"is it raining?": "yes", "is it?": "no"}


def manifest(bundle: Bundle, **fields: Any) -> dict[str, Any]:
    first = bundle.ensemble("intents").model_dump(mode="json", exclude_none=True)
    return first | {"golden": GOLDEN} | fields


async def started(world: World, engines: int = 2) -> None:
    await world.start(engines=engines)
    for engine in world.engines:
        engine.answers = RIGHT


async def test_right_answers_on_every_replica_let_it_through(world: World) -> None:
    await started(world)
    committed(await world.ask({"manifest": manifest(world.bundles[0])}))
    asked = [text.text for call in world.engines[1].calls for text in call.inputs]
    assert asked == ["is it raining?", "is it?"]
    assert {call.version for call in world.engines[1].calls} == {"intents@2"}


async def test_one_replica_that_answers_otherwise_aborts_and_nothing_changes(world: World) -> None:
    await started(world)
    world.engines[1].answers = RIGHT | {"is it?": "yes"}
    message = refused(await world.ask({"manifest": manifest(world.bundles[0])}), 400)
    assert "engine/1" in message
    assert "golden input 1 ('is it?') is answered 'yes' instead of 'no'" in message
    assert world.routed() == ["intents@1"]
    await until(lambda: world.holding() == [["intents@1"], ["intents@1"]])


async def test_they_stay_with_the_ensemble_when_an_adapter_is_swapped(world: World) -> None:
    await started(world, engines=1)
    committed(await world.ask({"manifest": manifest(world.bundles[0])}))
    world.engines[0].answers = dict.fromkeys(RIGHT, "yes")
    assert "golden input 1" in refused(await world.swap(100), 400)
    world.engines[0].answers = dict.fromkeys(RIGHT, "maybe")
    message = refused(await world.swap(100), 400)
    assert "golden input 0" in message
    assert "(and 1 more of 2)" in message
    assert await world.active() == 2


async def test_a_version_to_go_back_to_that_fails_stays_loaded_and_not_active(world: World) -> None:
    await started(world, engines=1)
    committed(await world.ask({"manifest": manifest(world.bundles[0])}))
    committed(await world.ask({"manifest": manifest(world.bundles[0], golden=[])}))
    world.engines[0].answers = dict.fromkeys(RIGHT, "yes")
    assert "golden input 1" in refused(await world.rollback(), 400)
    assert world.routed() == ["intents@3"]
    assert world.holding() == [["intents@2", "intents@3"]]


async def test_a_replica_that_starts_late_is_not_ready_with_wrong_answers(world: World) -> None:
    await started(world, engines=1)
    committed(await world.ask({"manifest": manifest(world.bundles[0])}))
    late = FakeEngine()
    late.answers = dict.fromkeys(RIGHT, "yes")
    with pytest.raises(PrepareError, match="golden input 1"):
        await world.add_engine(late)
    assert "intents@2" not in late.held


async def test_a_replica_that_cannot_answer_them_aborts(world: World) -> None:
    await started(world, engines=1)
    world.engines[0].refusal = Refusal(400, "the text is longer than the context")
    message = refused(await world.ask({"manifest": manifest(world.bundles[0])}), 400)
    assert "longer than the context" in message


async def test_an_engine_that_fails_on_them_has_proved_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(self: FakeEngine, call: Any) -> Any:
        raise ZeroDivisionError

    await started(world, engines=1)
    committed(await world.ask({"manifest": manifest(world.bundles[0])}))
    monkeypatch.setattr(FakeEngine, "predict", fail)
    assert "ZeroDivisionError" in refused(await world.swap(100), 400)
    with pytest.raises(PrepareError, match="ZeroDivisionError"):
        await world.add_engine()


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"golden": [{"input": "x", "label": "unknown"}]}, "unknown"),
        ({"golden": [{"input": {"text_pair": "x"}, "label": "yes"}]}, "golden.0"),
        ({"golden": [{"input": {"text": "x", "image": "y"}, "label": "yes"}]}, "golden.0"),
        ({"golden": [{"input": 3, "label": "yes"}]}, "golden"),
        ({"golden": [{"input": "x"}]}, "golden"),
        (
            {"task": "generation", "labels": None, "fusion": {"method": "vote"}},
            "checked for classification only",
        ),
    ],
)
async def test_golden_inputs_that_cannot_be_checked_are_refused(
    world: World, fields: dict[str, Any], says: str
) -> None:
    await world.start()
    body = {k: v for k, v in manifest(world.bundles[0], **fields).items() if v is not None}
    assert says in refused(await world.ask({"manifest": body}), 400)
    assert world.engines[0].prepared == ["intents@1"]


async def test_a_first_start_is_refused_by_wrong_answers(world: World) -> None:
    bundle = make_bundle(world.folder / "bundle")
    first = bundle.ensemble("intents").model_dump(mode="json", exclude_none=True)
    golden = bundle.ensemble("intents").model_validate(first | {"golden": GOLDEN, "version": 2})
    bundle.write_ensemble(golden)
    world.bundles = [bundle]
    engine = FakeEngine()
    engine.answers = dict.fromkeys(RIGHT, "yes")
    await world.start(engines=0, gateways=0)
    with pytest.raises(PrepareError, match="golden input 1"):
        async with asyncio.timeout(60):
            await world.add_engine(engine)

"""Golden inputs travel with an ensemble, and every replica answers them before it goes live."""

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import Any

import numpy as np
import pytest

from serve.bundle import Bundle
from serve.engine.interface import GenerateCall, PredictCall, Prediction, PrepareError
from serve.errors import Refusal
from serve.fusion.fused import Answers, FusedSets, FusedValues
from serve.protocol.views import RolloutView
from tests.serve.fakes import LABELS, FakeEngine, make_bundle, until
from tests.serve.world import World, committed, refused

GOLDEN = [{"input": "is it raining?", "label": "yes"}, {"input": {"text": "is it?"}, "label": "no"}]
IMAGE = "data:image/png;base64,AAAA"
RIGHT = {"is it raining?": "yes", "is it?": "no"}


MULTILABEL = {"task": "multilabel"}
REGRESSION = {"task": "regression", "labels": None}
GENERATION = {
    "task": "generation",
    "labels": None,
    "template": "Q: {text}\nA:",
    "fusion": {"method": "vote"},
}


def manifest(bundle: Bundle, **fields: Any) -> dict[str, Any]:
    first = bundle.ensemble("intents").model_dump(mode="json", exclude_none=True)
    return first | {"golden": GOLDEN} | fields


async def started(world: World, engines: int = 2) -> None:
    await world.start(engines=engines)
    for engine in world.engines:
        engine.answers = RIGHT


async def test_a_candidate_with_right_answers_on_every_replica_goes_live(world: World) -> None:
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


async def test_an_adapter_swap_keeps_the_golden_inputs(world: World) -> None:
    await started(world, engines=1)
    committed(await world.ask({"manifest": manifest(world.bundles[0])}))
    world.engines[0].answers = dict.fromkeys(RIGHT, "yes")
    assert "golden input 1" in refused(await world.swap(100), 400)
    world.engines[0].answers = dict.fromkeys(RIGHT, "maybe")
    message = refused(await world.swap(100), 400)
    assert "golden input 0" in message
    assert "(and 1 more of 2)" in message
    assert await world.active() == 2


async def test_a_failed_rollback_target_stays_loaded_and_inactive(world: World) -> None:
    await started(world, engines=1)
    committed(await world.ask({"manifest": manifest(world.bundles[0])}))
    committed(await world.ask({"manifest": manifest(world.bundles[0], golden=[])}))
    world.engines[0].answers = dict.fromkeys(RIGHT, "yes")
    assert "golden input 1" in refused(await world.rollback(), 400)
    assert world.routed() == ["intents@3"]
    assert world.holding() == [["intents@2", "intents@3"]]


async def test_a_late_replica_with_wrong_answers_does_not_become_ready(world: World) -> None:
    await started(world, engines=1)
    committed(await world.ask({"manifest": manifest(world.bundles[0])}))
    late = FakeEngine()
    late.answers = dict.fromkeys(RIGHT, "yes")
    with pytest.raises(PrepareError, match="golden input 1"):
        await world.add_engine(late)
    assert "intents@2" not in late.held


async def test_a_replica_that_refuses_a_golden_input_aborts_the_rollout(world: World) -> None:
    await started(world, engines=1)
    world.engines[0].refusal = Refusal(400, "the text is longer than the context")
    message = refused(await world.ask({"manifest": manifest(world.bundles[0])}), 400)
    assert "longer than the context" in message


async def test_an_exception_on_a_golden_input_aborts_the_rollout(
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
        ({"golden": [{"input": {"image": "/etc/passwd"}, "label": "yes"}]}, "must be a data URL"),
        ({"golden": [{"input": {"image": IMAGE, "text_pair": "x"}, "label": "yes"}]}, "golden.0"),
        ({"golden": [{"input": 3, "label": "yes"}]}, "golden"),
        ({"golden": [{"input": "x"}]}, "golden"),
        ({"golden": [{"input": "x", "label": "yes", "tolerance": 1}]}, "not for classification"),
        ({"golden": [{"input": "x", "labels": ["yes"]}]}, "golden.0 needs 'label'"),
        ({**MULTILABEL, "golden": [{"input": "x", "labels": ["maybe"]}]}, "maybe"),
        ({**REGRESSION, "golden": [{"input": "x", "value": 1.5}]}, "golden.0 needs 'tolerance'"),
        ({**REGRESSION, "golden": [{"input": "x", "value": 1.5, "tolerance": 0}]}, "tolerance"),
        ({**GENERATION, "golden": [{"input": "x", "label": "yes"}]}, "golden.0 needs 'text'"),
        ({**GENERATION, "golden": [{"input": "x", "text": "y", "max_tokens": 0}]}, "max_tokens"),
    ],
)
async def test_golden_inputs_that_cannot_be_checked_are_refused(
    world: World, fields: dict[str, Any], says: str
) -> None:
    await world.start()
    body = {k: v for k, v in manifest(world.bundles[0], **fields).items() if v is not None}
    assert says in refused(await world.ask({"manifest": body}), 400)
    assert world.engines[0].prepared == ["intents@1"]


async def test_wrong_answers_stop_the_first_start(world: World) -> None:
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


class Answering(FakeEngine):
    """Answers every text with the same set of labels, value or text."""

    chosen: tuple[str, ...] = ()
    value = 0.0
    text: str | Refusal = ""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[GenerateCall] = []

    async def predict(self, call: PredictCall) -> Prediction | Refusal:
        rows, zeros = len(call.inputs), np.zeros(len(call.inputs))
        answers: Answers = FusedValues(np.full(rows, self.value), zeros)
        if self.held[call.version].ensemble.task == "multilabel":
            chosen = np.array([[label in self.chosen for label in LABELS]] * rows)
            answers = FusedSets(chosen.astype(np.float64), zeros, zeros, chosen)
        return Prediction(call.version, tuple(LABELS), answers, (), None, 1, 2)

    async def generate(self, call: GenerateCall) -> AsyncGenerator[bytes | Refusal, None]:
        self.asked.append(call)
        if isinstance(self.text, Refusal):
            yield self.text
            return
        said: dict[str, Any] = {"text": self.text}
        if call.route == "chat":
            said = {"message": {"content": self.text}}
        body = json.dumps({"choices": [said]}).encode()
        yield body[:10]
        yield body[10:]


async def answering(world: World) -> Answering:
    await world.start(engines=0)
    engine = Answering()
    await world.add_engine(engine)
    return engine


async def ask(world: World, task: dict[str, Any], golden: dict[str, Any]) -> RolloutView | Refusal:
    body = manifest(world.bundles[0], **task, golden=[{"input": "is it?", **golden}])
    return await world.ask({"manifest": {k: v for k, v in body.items() if v is not None}})


async def test_a_multilabel_answer_must_be_the_same_set(world: World) -> None:
    engine = await answering(world)
    engine.chosen = ("yes", "no")
    committed(await ask(world, MULTILABEL, {"labels": ["no", "yes"]}))
    message = refused(await ask(world, MULTILABEL, {"labels": ["yes"]}), 400)
    assert "golden input 0 ('is it?') is answered 'no', 'yes' instead of 'yes'" in message
    engine.chosen = ()
    committed(await ask(world, MULTILABEL, {"labels": []}))
    message = refused(await ask(world, MULTILABEL, {"labels": ["no"]}), 400)
    assert "answered no label instead of 'no'" in message


async def test_a_regression_answer_must_be_within_the_tolerance(world: World) -> None:
    engine = await answering(world)
    engine.value = 2.75
    for value in (2.5, 2.75, 3.0):
        committed(await ask(world, REGRESSION, {"value": value, "tolerance": 0.25}))
    message = refused(await ask(world, REGRESSION, {"value": 3.25, "tolerance": 0.25}), 400)
    assert "answered 2.75 instead of 3.25, give or take 0.25" in message
    engine.value = float("nan")
    refused(await ask(world, REGRESSION, {"value": 2.5, "tolerance": 0.25}), 400)


async def test_a_generated_answer_must_be_the_same_text(world: World) -> None:
    engine = await answering(world)
    engine.text = " Yes, it is.\n"
    committed(await ask(world, GENERATION, {"text": "Yes, it is.", "max_tokens": 5}))
    call = engine.asked[0]
    assert (call.version, call.route, call.member) == ("intents@2", "completions", None)
    assert call.body == {"prompt": "Q: is it?\nA:", "max_tokens": 5, "temperature": 0}
    message = refused(await ask(world, GENERATION, {"text": "Yes, it was."}), 400)
    assert (
        "golden input 0 ('is it?') is answered 'Yes, it is.' instead of 'Yes, it was.'" in message
    )
    assert await world.active() == 2


async def test_an_image_is_asked_about_by_itself_and_beside_a_text(world: World) -> None:
    engine = await answering(world)
    engine.chosen = ("yes",)
    for given in ({"image": IMAGE}, {"image": IMAGE, "text": "a dog?"}):
        committed(await ask(world, MULTILABEL, {"input": given, "labels": ["yes"]}))
    message = refused(await ask(world, MULTILABEL, {"input": given, "labels": ["no"]}), 400)
    assert "golden input 0 (an image and 'a dog?') is answered 'yes' instead of 'no'" in message


async def test_a_text_about_an_image_is_asked_for_in_a_chat(world: World) -> None:
    """Completions have no images."""
    engine = await answering(world)
    engine.text = "A dog."
    given = {"image": IMAGE, "text": "What is it?"}
    committed(await ask(world, GENERATION, {"input": given, "text": "A dog."}))
    (call,) = engine.asked
    assert call.route == "chat"
    (message,) = call.body["messages"]
    assert message["role"] == "user"
    image, text = message["content"]
    assert image == {"type": "image_url", "image_url": {"url": IMAGE}}
    assert text == {"type": "text", "text": "What is it?"}


async def test_an_incomplete_last_character_is_ignored(world: World) -> None:
    engine = await answering(world)
    engine.text = "One of the"
    committed(await ask(world, GENERATION, {"text": "One of the \ufffd", "max_tokens": 4}))
    refused(await ask(world, GENERATION, {"text": "One \ufffd of the", "max_tokens": 4}), 400)


async def test_a_refused_generation_aborts_the_rollout(world: World) -> None:
    engine = await answering(world)
    engine.text = Refusal(400, "the prompt is longer than the context")
    message = refused(await ask(world, GENERATION, {"text": "yes"}), 400)
    assert "cannot be answered: the prompt is longer" in message


async def test_an_adapter_swap_keeps_golden_texts(world: World) -> None:
    engine = await answering(world)
    engine.text = "Yes."
    committed(await ask(world, GENERATION, {"text": "Yes."}))
    engine.text = "No."
    assert "answered 'No.' instead of 'Yes.'" in refused(await world.swap(100), 400)

"""How one of the members' whole answers is chosen, with an engine that only says what it was told."""

import json
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest
from vllm import SamplingParams
from vllm.outputs import CompletionOutput, RequestOutput

from serve.engine.generation.client import (
    EnsembleClient,
    GenerationContext,
    MemberRun,
    current_generation,
)
from serve.engine.generation.documents import complete
from serve.engine.generation.refusals import call_fusion, generation_refusal
from serve.engine.interface import GenerateCall
from serve.engine.limits.fair_queue import FairQueue
from tests.serve.engine.calls import version

SAID = {
    "a": "The weather is fine.",
    "b": "Your parcel should arrive on Friday.",
    "c": "The parcel should arrive by Friday.",
}


class Talkers:
    """An engine in which each member says its own text. The prompt holds the member's name."""

    def __init__(self) -> None:
        self.model_config = SimpleNamespace(max_model_len=256)

    async def generate(
        self, prompt: Any, params: SamplingParams, request_id: str, **_: Any
    ) -> AsyncIterator[RequestOutput]:
        text = SAID[prompt["member"]]
        said = CompletionOutput(0, text, [1] * 3, None, None, finish_reason="stop")
        yield RequestOutput(request_id, None, [1, 2], None, [said], finished=True)


def adapters(name: str) -> Any:
    return SimpleNamespace(
        fitted=lambda params, *_, **__: params,
        prompt=lambda prompt: {**prompt, "member": name},
        params=lambda params: params,
        lora=None,
        virtual_tokens=0,
    )


def asked(**fields: Any) -> GenerateCall:
    return GenerateCall("talk@1", "completions", {"prompt": "x"}, "r", **fields)


async def answer(call: GenerateCall, manifest: str = "average") -> tuple[list[str], Any]:
    """Returns the texts that were sent, one for each chunk, and the finished document's choice."""
    ensemble = version({}, "talk", dict.fromkeys(SAID), fusion={"method": manifest}).ensemble
    assert generation_refusal(ensemble, call) is None
    context = GenerationContext(
        "talk@1",
        ensemble,
        [MemberRun(member, adapters(member.name)) for member in ensemble.members],
        FairQueue(4).for_call(),
        weights=call.weights,
        fusion=call_fusion(ensemble, call),
        return_members=call.return_members,
    )
    current_generation.set(context)
    llm: Any = Talkers()
    stream = EnsembleClient(llm).generate({"prompt_token_ids": [1, 2]}, SamplingParams(), "r-0")
    chunks = [output.outputs[0].text async for output in stream]
    document = json.dumps({"choices": [{"index": 0, "text": chunks[0]}]}).encode()
    return chunks, json.loads(complete(document, context, call))["choices"][0]


@pytest.mark.parametrize(
    ("manifest", "method"), [("mbr", None), ("average", "mbr"), ("vote", "mbr")]
)
async def test_mbr_sends_the_answer_that_is_most_like_the_others_as_one_chunk(
    manifest: str, method: str | None
) -> None:
    chunks, choice = await answer(asked(method=method, return_members=True), manifest)
    assert chunks == [SAID["c"]]
    assert [(each["name"], each["text"]) for each in choice["members"]] == list(SAID.items())
    assert [each["agrees"] for each in choice["members"]] == [False, False, True]
    assert 1 / 3 < choice["agreement"] < 1


async def test_a_request_chooses_a_vote_where_the_manifest_says_mbr() -> None:
    chunks, choice = await answer(asked(method="vote", return_members=True), "mbr")
    assert chunks == [SAID["a"]], "all differ, so the first one wins"
    assert choice["agreement"] == pytest.approx(1 / 3)


async def test_weights_of_a_request_count_for_mbr() -> None:
    chunks, _ = await answer(asked(method="mbr", weights={"a": 1, "b": 0, "c": 0}))
    assert chunks == [SAID["a"]]


@pytest.mark.parametrize(
    ("fields", "param", "says"),
    [
        ({"weights": {"a": 1}}, "fusion.weights", "'b' has no weight"),
        ({"weights": {"a": -1, "b": 1, "c": 1}}, "fusion.weights", "at least 0"),
        ({"plausibility": 0.1}, "fusion.plausibility", "is for product, not for mbr"),
        ({"body": {"prompt": "x", "n": 2}}, "n", "write whole answers, of which one is chosen"),
        ({"body": {"prompt": "x", "logprobs": 1}}, "logprobs", "ask one member alone as 'talk/a'"),
    ],
)
def test_what_mbr_cannot_honour_is_refused(fields: Any, param: str, says: str) -> None:
    ensemble = version({}, "talk", dict.fromkeys(SAID)).ensemble
    call = GenerateCall(
        "talk@1", "completions", fields.pop("body", {}), "r", method="mbr", **fields
    )
    refusal = generation_refusal(ensemble, call)
    assert refusal is not None
    assert (refusal.status, refusal.param) == (400, param)
    assert says in refusal.message

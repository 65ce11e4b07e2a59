"""How one of the members' whole answers is chosen, with an engine that only says what it was told."""

import json
from collections.abc import AsyncIterator, Mapping
from types import SimpleNamespace
from typing import Any

import pytest
from vllm import SamplingParams
from vllm.logprobs import FlatLogprobs, Logprob
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
from serve.fusion.ranking.ranker import Ranker, RankerParameters
from tests.serve.engine.calls import version

SAID = {
    "a": "The weather is fine.",
    "b": "Your parcel should arrive on Friday.",
    "c": "The parcel should arrive by Friday.",
}


class Talkers:
    """An engine in which each member says its own text in three tokens. The prompt holds the member's name. Scoring a
    text, member `a` finds the last token of that of `b` likely, and all else equally unlikely."""

    def __init__(self, said: Mapping[str, str] = SAID) -> None:
        self.model_config = SimpleNamespace(max_model_len=256)
        self.scored: list[tuple[str, list[int]]] = []
        self._said = said

    async def generate(
        self, prompt: Any, params: SamplingParams, request_id: str, **_: Any
    ) -> AsyncIterator[RequestOutput]:
        member, ids = prompt["member"], prompt["prompt_token_ids"]
        if params.logprob_token_ids is not None:
            yield self._score(member, ids, params.logprob_token_ids, request_id)
            return
        own = [10 + list(self._said).index(member)] * 3
        said = CompletionOutput(0, self._said[member], own, None, None, finish_reason="stop")
        yield RequestOutput(request_id, None, ids, None, [said], finished=True)

    def _score(
        self, member: str, ids: list[int], tokens: list[int], request_id: str
    ) -> RequestOutput:
        self.scored.append((member, [*ids, *tokens]))
        last = -0.5 if (member, tokens) == ("a", [11]) else -4.0
        found = CompletionOutput(
            0, "", tokens, None, [{tokens[0]: Logprob(last)}], finish_reason="length"
        )
        before = FlatLogprobs()
        before.append(None)
        for token in ids[1:]:
            before.append({token: Logprob(-1.0)})
        return RequestOutput(request_id, None, ids, before, [found], finished=True)


def adapters(name: str) -> Any:
    return SimpleNamespace(
        fitted=lambda params, *_, **__: params,
        prompt=lambda prompt: {**prompt, "member": name},
        params=lambda params, *_: params,
        lora=None,
        virtual_tokens=0,
    )


def asked(**fields: Any) -> GenerateCall:
    return GenerateCall("talk@1", "completions", {"prompt": "x"}, "r", **fields)


async def answer(
    call: GenerateCall,
    manifest: str = "average",
    talkers: Talkers | None = None,
    ranker: Ranker | None = None,
) -> tuple[list[str], Any]:
    """Returns the texts that were sent, one for each chunk, and the finished document's choice."""
    ensemble = version({}, "talk", dict.fromkeys(SAID), fusion={"method": manifest}).ensemble
    assert generation_refusal(ensemble, call, ranked=ranker is not None) is None
    context = GenerationContext(
        "talk@1",
        ensemble,
        [MemberRun(member, adapters(member.name)) for member in ensemble.members],
        FairQueue(4).for_call(),
        weights=call.weights,
        fusion=call_fusion(ensemble, call),
        return_members=call.return_members,
        ranker=ranker,
    )
    current_generation.set(context)
    llm: Any = talkers or Talkers()
    stream = EnsembleClient(llm).generate({"prompt_token_ids": [1, 2]}, SamplingParams(), "r-0")
    chunks = [output.outputs[0].text async for output in stream]
    document = json.dumps({"choices": [{"index": 0, "text": chunks[0]}], "usage": {"x": 1}})
    finished = json.loads(complete(document.encode(), context, call))
    return chunks, finished["choices"][0] | finished["usage"]


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


@pytest.fixture
def ranker() -> Ranker:
    """Believes member `a`, and reads nothing else."""
    return Ranker(
        RankerParameters(
            members=list(SAID),
            digests=[[], [], []],
            coefficients=[1.0, 0.0, 0.0, 0.0, 0.0],
            bonus=[0.0, 0.0, 0.0],
        )
    )


async def test_a_ranker_chooses_by_what_each_member_finds_likely(ranker: Ranker) -> None:
    talkers = Talkers()
    chunks, choice = await answer(
        asked(method="stack", return_members=True), "average", talkers, ranker
    )
    assert chunks == [SAID["b"]]
    assert [each["agrees"] for each in choice["members"]] == [False, True, False]
    assert {member for member, _ in talkers.scored} == set(SAID)
    assert sorted(ids for member, ids in talkers.scored if member == "c") == [
        [1, 2, token, token, token] for token in (10, 11, 12)
    ]
    assert choice["member_tokens"] == 3 * 2 + 3 * 3 + 9 * 3


async def test_equal_answers_are_not_scored(ranker: Ranker) -> None:
    talkers = Talkers(dict.fromkeys(SAID, "Yes."))
    chunks, choice = await answer(
        asked(method="stack", return_members=True), "average", talkers, ranker
    )
    assert chunks == ["Yes."]
    assert (choice["agreement"], talkers.scored) == (1, [])


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

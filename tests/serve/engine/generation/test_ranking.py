"""Ranked answers of a small real engine, beside what PEFT and transformers say of the same answers."""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serve.engine.interface import PrepareError
from serve.errors import Refusal
from serve.fusion.answers import ranked_answer
from serve.fusion.ranking.candidates import Candidates
from serve.fusion.ranking.ranker import Ranker, RankerParameters
from serve.fusion.stack.stacker import digests_of
from tests.serve.engine.calls import ask, prompts, version
from tests.serve.engine.fused import Judge

pytestmark = [pytest.mark.engine, pytest.mark.asyncio(loop_scope="session")]

MEMBERS = {"a": "a", "b": "b", "plain": None}
TOKENS = 10
STACK = {"method": "stack", "model": "linear_regression", "parameters": "fusion/x/stack.json"}


@pytest.fixture(scope="module")
def ranked(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A version whose ranker believes the second member, likes what is like the others, and dislikes nobody."""
    made = version(models, "ranked", MEMBERS, fusion=STACK)
    parameters = RankerParameters(
        members=list(MEMBERS),
        digests=digests_of(made.ensemble),
        coefficients=[0.3, 1.0, -0.2, 0.1, 2.0],
        bonus=[0.05, 0.0, 0.1],
    )
    file = tmp_path_factory.mktemp("ranked") / "stack.json"
    Ranker(parameters).write(file)
    return replace(made, parameters=str(file))


def body(prompt: str) -> dict[str, Any]:
    return {"prompt": prompt, "max_tokens": TOKENS, "temperature": 0, "ignore_eos": True}


async def test_the_served_answer_is_the_one_that_the_ranker_chooses_offline(
    engine: Any, judge: Judge, ranked: Any
) -> None:
    await engine.prepare(ranked)
    texts = prompts(6, seed=5)
    ranker = Ranker.read(Path(ranked.parameters))
    opposite = Ranker(
        ranker.parameters.model_copy(
            update={"coefficients": [-each for each in ranker.parameters.coefficients]}
        )
    )
    chosen = []
    for prompt in texts:
        alone = [
            (await ask(engine, {**body(prompt), "return_token_ids": True}, "ranked", member=name))[
                "choices"
            ][0]
            for name in MEMBERS
        ]
        written = [choice["token_ids"] for choice in alone]
        log_probs = [
            [
                float(judge.logs(name, prompt, tokens)[np.arange(len(tokens)), tokens].sum())
                for tokens in written
            ]
            for name in MEMBERS
        ]
        candidates = Candidates(
            [choice["text"] for choice in alone], [len(ids) for ids in written], np.array(log_probs)
        )
        offline = ranked_answer(ranked.ensemble, ranker, candidates)
        answer = await ask(engine, body(prompt), "ranked", return_members=True)
        assert not isinstance(answer, Refusal), answer
        (choice,) = answer["choices"]
        assert choice["text"] == alone[offline.winner]["text"]
        assert choice["agreement"] == pytest.approx(offline.share)
        assert [each["text"] for each in choice["members"]] == [each["text"] for each in alone]
        read = answer["usage"]["prompt_tokens"] * 3
        different = len({tuple(ids) for ids in written})
        scored = 3 * different * TOKENS if different > 1 else 0
        assert answer["usage"]["member_tokens"] == read + 3 * TOKENS + scored
        other = ranked_answer(ranked.ensemble, opposite, candidates)
        chosen.append(other.winner != offline.winner)
    assert any(chosen), "or the ranker chooses nothing"
    streamed = await asyncio.gather(*(ask(engine, body(each), "ranked") for each in texts))
    assert all(not isinstance(each, Refusal) for each in streamed), "also many at once"


async def test_a_request_chooses_the_ranker_and_gives_it_no_weights(
    engine: Any, ranked: Any
) -> None:
    averaging = ranked.ensemble.fusion.model_copy(update={"method": "average"})
    ensemble = ranked.ensemble.model_copy(update={"name": "asked", "fusion": averaging})
    await engine.prepare(replace(ranked, ensemble=ensemble))
    stacked = await ask(engine, body("where is my card"), "asked", method="stack")
    same = await ask(engine, body("where is my card"), "ranked")
    assert stacked["choices"][0]["text"] == same["choices"][0]["text"]
    refused = await ask(
        engine, body("x"), "asked", method="stack", weights=dict.fromkeys(MEMBERS, 1.0)
    )
    assert isinstance(refused, Refusal)
    assert (refused.status, refused.param) == (400, "fusion.weights")
    without = await ask(engine, body("x"), "five", method="stack")
    assert isinstance(without, Refusal)
    assert "has no stacker that was fitted on its adapters" in without.message


async def test_a_ranker_of_other_adapters_is_not_loaded(
    engine: Any, models: dict[str, Path], ranked: Any
) -> None:
    other = version(models, "other", {**MEMBERS, "b": "c"}, fusion=STACK)
    with pytest.raises(PrepareError, match="fitted on other adapters than those of b"):
        await engine.prepare(replace(other, parameters=ranked.parameters))
    await engine.prepare(replace(other, parameters=ranked.parameters, allow_stale_fusion=True))
    assert not isinstance(await ask(engine, body("x"), "other"), Refusal)

"""Label scoring asks vLLM for a few requests at once, and puts the answers together right."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer
from vllm.logprobs import FlatLogprobs

from serve.engine.adapters.member_adapters import MemberAdapters
from serve.engine.limits.fair_queue import FairQueue
from serve.engine.scoring.labels_as_text import CausalScorer
from serve.prompting.reader import PromptReader
from tests.serve import tiny

CONTEXT = 512
LABELS = [
    *[f" {one}{other}" for one in "abcdefgh" for other in "abcdefghik"][:77],
    " card",
    " card lost",
]


def log_probability(prefix: Sequence[int], token: int) -> float:
    """A made-up model: any number that depends on the token and on all tokens before it."""
    digest = hashlib.sha256(repr((list(prefix), token)).encode()).digest()
    return -(1 + int.from_bytes(digest[:4], "big") / 2**32)


class FakeLLM:
    """An engine with that model, which counts the requests that run at once."""

    def __init__(self) -> None:
        self.model_config = SimpleNamespace(max_model_len=CONTEXT)
        self.running = self.most = self.asked = self.tokens = 0
        self.order: list[tuple[tuple[int, ...], str | None]] = []
        """The prompts as they came, and the LoRA of each."""

    async def generate(
        self, prompt: Any, params: Any, request_id: str, lora_request: Any, trace_headers: Any
    ) -> AsyncIterator[Any]:
        self.asked += 1
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await asyncio.sleep(0)
            ids = prompt["prompt_token_ids"]
            self.tokens += len(ids)
            self.order.append((tuple(ids), lora_request))
            prompt_logprobs = FlatLogprobs()
            if params.prompt_logprobs is not None:
                prompt_logprobs.start_indices = list(range(len(ids)))
                prompt_logprobs.logprobs = [0.0] + [
                    log_probability(ids[:place], ids[place]) for place in range(1, len(ids))
                ]
            position = {
                token: SimpleNamespace(logprob=log_probability(ids, token))
                for token in params.logprob_token_ids
            }
            yield SimpleNamespace(
                outputs=[SimpleNamespace(finish_reason="length", logprobs=[position])],
                prompt_logprobs=prompt_logprobs,
                kv_transfer_params={"choir_computed": len(ids)},
            )
        finally:
            self.running -= 1


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return AutoTokenizer.from_pretrained(tiny.causal_base(tmp_path_factory.mktemp("base")))


def label_tokens(tokenizer: Any, prompt: str, label: str) -> tuple[list[int], list[int]]:
    """Prompt and label tokenised as a whole: what they share with the tokenised prompt, and the label's own tokens."""
    alone, whole = (list(tokenizer(text)["input_ids"]) for text in (prompt, prompt + label))
    pairs = zip(alone, whole, strict=False)
    shared = next((n for n, (one, other) in enumerate(pairs) if one != other), len(alone))
    return whole[:shared], whole[shared:]


def expected(tokenizer: Any, prompt: str) -> list[float]:
    scores = []
    for label in LABELS:
        ids, own = label_tokens(tokenizer, prompt, label)
        score = 0.0
        for token in own:
            score += log_probability(ids, token)
            ids = [*ids, token]
        scores.append(score)
    return scores


async def test_many_inputs_members_and_labels_are_never_in_vllm_all_at_once(tokenizer: Any) -> None:
    llm: Any = FakeLLM()
    queue = FairQueue(16)
    prompts = [f"{number} where is my card\nIntent:" for number in range(32)]
    scored = await CausalScorer(llm, tokenizer).score(
        prompts, LABELS, [MemberAdapters()] * 4, queue.for_call()
    )
    assert llm.asked > 32 * 4 * 10, "one request for each member, prompt and stem of the labels"
    assert llm.most == 16
    assert llm.running == 0
    wanted = np.array([expected(tokenizer, prompt) for prompt in prompts])
    for member in range(4):
        np.testing.assert_allclose(scored.scores[member], wanted, rtol=1e-12)


async def test_members_read_one_text_after_the_other(tokenizer: Any) -> None:
    """Else a prompt that they share would be evicted between two of them."""
    llm: Any = FakeLLM()
    members = [MemberAdapters(lora=SimpleNamespace(lora_name=name)) for name in "abc"]
    scored = await CausalScorer(llm, tokenizer).score(
        ["where is", "my card"], [" A", " B"], members, FairQueue(1).for_call()
    )
    asked = [(tokenizer.decode(ids).strip(), lora.lora_name) for ids, lora in llm.order]
    in_order = [(text, name) for text in ("where is", "my card") for name in "abc"]
    assert list(dict.fromkeys(asked)) == in_order
    assert asked == sorted(asked, key=in_order.index)
    assert scored.computed_tokens == llm.tokens


async def test_members_read_their_own_invocation(tokenizer: Any) -> None:
    llm: Any = FakeLLM()
    scorer, reader = CausalScorer(llm, tokenizer), PromptReader(tokenizer)
    asks = [reader.invocation_of_text(text) for text in ("\nIntent:", " Say")]
    members = [MemberAdapters(), *(MemberAdapters(invocation=each) for each in asks)]
    scored = await scorer.score(
        ["where is"],
        [" A", " B"],
        members,
        FairQueue(1).for_call(),
        heads={each: ["where is"] for each in asks},
    )
    texts = [tokenizer.decode(ids).strip() for ids, _ in llm.order]
    assert list(dict.fromkeys(texts)) == ["where is", "where is\nIntent:", "where is Say"]
    labels = 3 * sum(len(tokenizer(label)["input_ids"]) for label in (" A", " B"))
    prompts = [tokenizer("where is")["input_ids"], *(each.tokens for each in asks)]
    assert scored.member_tokens == 3 * len(prompts[0]) + sum(map(len, prompts[1:])) + labels


async def test_means_are_over_each_labels_own_tokens(tokenizer: Any) -> None:
    llm: Any = FakeLLM()
    prompt = "where is my card\nIntent:"
    scored = await CausalScorer(llm, tokenizer).score(
        [prompt], LABELS, [MemberAdapters()], FairQueue(4).for_call(), mean=True
    )
    lengths = [len(label_tokens(tokenizer, prompt, label)[1]) for label in LABELS]
    assert len(set(lengths)) > 1
    wanted = np.array(expected(tokenizer, prompt)) / lengths
    np.testing.assert_allclose(scored.scores[0, 0], wanted, rtol=1e-12)
    assert scored.prompt_tokens == len(tokenizer(prompt)["input_ids"])
    assert scored.member_tokens == scored.prompt_tokens + sum(lengths)

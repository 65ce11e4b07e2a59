"""Measures what an adapter changes, in a few numbers that are the same on every replica."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from vllm.v1.engine.async_llm import AsyncLLM

from serve.engine.adapters.member_adapters import MemberAdapters
from serve.engine.interface import Probe
from serve.engine.limits.fair_queue import FairQueue
from serve.engine.scoring.continuations import Continuations
from serve.engine.scoring.heads import EncoderPooler, Row
from serve.labels import readable
from serve.prompting.invocation import Invocation

TEXT = "The quick brown fox jumps over the lazy dog. 0123456789"
OUTPUTS = 64
"""How many numbers a probe compares; vLLM returns at most 128 in one request."""


class Prober:
    """Runs one fixed input through adapters, and compares the outputs with the plain base's."""

    def __init__(self, llm: AsyncLLM, kind: Literal["causal", "encoder"], tokenizer: Any) -> None:
        self._causal = Continuations(llm) if kind == "causal" else None
        self._encoder = EncoderPooler(llm, tokenizer) if kind == "encoder" else None
        self._tokens = probe_tokens(tokenizer)
        self._context = llm.model_config.max_model_len
        vocabulary = llm.model_config.get_vocab_size()
        self._watched = list(range(0, vocabulary, -(-vocabulary // OUTPUTS)))
        self._epsilon = float(torch.finfo(llm.model_config.dtype).eps)
        self._base: dict[Invocation | None, tuple[float, ...]] = {}
        """What the base answers to the fixed input with each invocation that an adapter has."""

    @classmethod
    async def create(
        cls, llm: AsyncLLM, kind: Literal["causal", "encoder"], tokenizer: Any
    ) -> "Prober":
        """Returns a prober that has probed the plain base, which also builds vLLM's kernels."""
        prober = cls(llm, kind, tokenizer)
        await prober._of_base(None)
        return prober

    async def probe(self, digest: str, adapter: MemberAdapters) -> Probe:
        """Returns what a loaded adapter answers alone. `digest` only names it in the result."""
        outputs = await self._outputs(adapter, adapter.invocation)
        base = await self._of_base(adapter.invocation)
        change = max(abs(a - b) for a, b in zip(outputs, base, strict=True))
        return Probe(digest=digest, outputs=outputs, change=change, epsilon=self._epsilon)

    async def _of_base(self, invocation: Invocation | None) -> tuple[float, ...]:
        if invocation not in self._base:
            self._base[invocation] = await self._outputs(MemberAdapters(), invocation)
        return self._base[invocation]

    async def _outputs(
        self, adapter: MemberAdapters, invocation: Invocation | None
    ) -> tuple[float, ...]:
        """Returns the log-probabilities of the watched tokens after the fixed input and an invocation, or the first
        values of the pooled vector."""
        values: Sequence[float]
        if self._causal is not None:
            ending = list(invocation.tokens) if invocation else []
            room = self._context - adapter.virtual_tokens - len(ending) - 1
            tokens = [*self._tokens[: max(room, 0)], *ending]
            values = (await self._causal.log_probs(tokens, self._watched, adapter)).log_probs
        else:
            assert self._encoder is not None
            rows: list[Row] = [self._tokens[: self._context - 1]]
            if self._encoder.pictures is not None:  # a LoRA may change one of the two towers alone
                rows.append(self._encoder.pictures.of_probe())
            pooled = await self._encoder.pool(rows, [adapter.lora], FairQueue(2).for_call())
            values = pooled[0, :, : OUTPUTS // len(rows)].flatten().tolist()
        return tuple(values)


def probe_tokens(tokenizer: Any) -> list[int]:
    """Returns the token ids of the fixed input. If the tokenizer does not know its letters, takes another text, so that
    at least one token is an ordinary one."""
    known = bool(tokenizer(TEXT, add_special_tokens=False)["input_ids"])
    ids: list[int] = tokenizer(TEXT if known else readable(tokenizer))["input_ids"]
    return ids

"""Measures what an adapter changes, in a few numbers that are the same on every replica."""

import logging
from collections.abc import Sequence
from typing import Any, Literal

import torch
from vllm.v1.engine.async_llm import AsyncLLM

from serve.engine.adapters.member_adapters import MemberAdapters
from serve.engine.interface import Probe
from serve.engine.limits.fair_queue import FairQueue
from serve.engine.scoring.continuations import Continuations
from serve.engine.scoring.heads import EncoderPooler, Row
from serve.engine.scoring.pictures import Pictures, placeholder
from serve.images.limits import ImageLimits
from serve.labels import LabelError, readable
from serve.prompting.invocation import Invocation

logger = logging.getLogger(__name__)

TEXT = "The quick brown fox jumps over the lazy dog. 0123456789"
OUTPUTS = 64
"""How many numbers a probe compares; vLLM returns at most 128 in one request."""


class Prober:
    """Runs one fixed input through adapters, and compares the outputs with the plain base's."""

    def __init__(self, llm: AsyncLLM, kind: Literal["causal", "encoder"], tokenizer: Any) -> None:
        self._causal = Continuations(llm) if kind == "causal" else None
        self._encoder = EncoderPooler(llm, tokenizer) if kind == "encoder" else None
        self._pictures = Pictures(llm, ImageLimits())
        self._image: list[int] = []
        """The tokens that stand for an image; none where probes ask about a text alone."""
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
        await prober._find_image(llm, tokenizer)
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
            values = await self._after_text(self._causal, adapter, ending)
            if self._image:
                seen = await self._after_image(self._causal, adapter, ending)
                values = [*values[::2], *seen[1::2]]
        else:
            assert self._encoder is not None
            rows: list[Row] = [self._tokens[: self._context - 1]]
            if self._encoder.pictures is not None:  # a LoRA may change one of the two towers alone
                rows.append(self._encoder.pictures.of_probe())
            pooled = await self._encoder.pool(rows, [adapter.lora], FairQueue(2).for_call())
            values = pooled[0, :, : OUTPUTS // len(rows)].flatten().tolist()
        return tuple(values)

    async def _after_text(
        self, causal: Continuations, adapter: MemberAdapters, ending: list[int]
    ) -> list[float]:
        room = self._context - adapter.virtual_tokens - len(ending) - 1
        tokens = [*self._tokens[: max(room, 0)], *ending]
        return (await causal.log_probs(tokens, self._watched, adapter)).log_probs

    async def _after_image(
        self, causal: Continuations, adapter: MemberAdapters, ending: list[int]
    ) -> list[float]:
        """Returns the same after a fixed image: a LoRA may change only what reads images."""
        tokens, rendered = await self._pictures.of_probe(self._image).behind(self._image)
        whole = [*tokens, *ending]
        scored = await causal.log_probs(whole, self._watched, adapter, rendered=rendered)
        return scored.log_probs

    async def _find_image(self, llm: AsyncLLM, tokenizer: Any) -> None:
        """Finds out how an image is asked about, where adapters may change what reads images, and it fits."""
        mark = placeholder(llm)
        lora = llm.vllm_config.lora_config
        if self._causal is None or mark is None or not lora.enable_tower_connector_lora:
            return
        before = tokenizer(mark)["input_ids"]
        try:
            tokens, _ = await self._pictures.of_probe(before).behind(before)
            reason = f"it takes {len(tokens)} of {self._context} tokens"
        except LabelError as error:
            tokens, reason = [], str(error)
        if 0 < len(tokens) < self._context // 2:
            self._image = before
        else:
            logger.warning(
                "Probes ask about a text alone, and do not see what a LoRA changes in images. The fixed image cannot "
                "be asked about: %s.",
                reason.removesuffix("."),
            )


def probe_tokens(tokenizer: Any) -> list[int]:
    """Returns the token ids of the fixed input. If the tokenizer does not know its letters, takes another text, so that
    at least one token is an ordinary one."""
    known = bool(tokenizer(TEXT, add_special_tokens=False)["input_ids"])
    ids: list[int] = tokenizer(TEXT if known else readable(tokenizer))["input_ids"]
    return ids

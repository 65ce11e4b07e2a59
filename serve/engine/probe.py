"""What an adapter does to the base, in a few numbers: proof that it was loaded, the same on every replica."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from vllm.v1.engine.async_llm import AsyncLLM

from serve.engine.adapters.member_adapters import MemberAdapters
from serve.engine.interface import Probe
from serve.engine.places import Places
from serve.engine.scoring.heads import EncoderPooler
from serve.engine.scoring.labels_as_text import CausalScorer
from serve.labels import readable

TEXT = "The quick brown fox jumps over the lazy dog. 0123456789"
OUTPUTS = 64
"""How many numbers are compared; with label scoring's own calls at most 128 are possible."""


class Prober:
    """Runs one fixed input through adapters and compares with the plain base."""

    def __init__(self, llm: AsyncLLM, kind: Literal["causal", "encoder"], tokenizer: Any) -> None:
        self._causal = CausalScorer(llm, tokenizer) if kind == "causal" else None
        self._encoder = EncoderPooler(llm, tokenizer) if kind == "encoder" else None
        self._tokens = probe_tokens(tokenizer)
        self._context = llm.model_config.max_model_len
        vocabulary = llm.model_config.get_vocab_size()
        self._watched = list(range(0, vocabulary, -(-vocabulary // OUTPUTS)))
        self._epsilon = float(torch.finfo(llm.model_config.dtype).eps)
        self._base: tuple[float, ...] = ()

    @classmethod
    async def create(
        cls, llm: AsyncLLM, kind: Literal["causal", "encoder"], tokenizer: Any
    ) -> "Prober":
        """Probes the base, which also builds vLLM's kernels."""
        prober = cls(llm, kind, tokenizer)
        prober._base = await prober._outputs(MemberAdapters())
        return prober

    async def probe(self, digest: str, adapter: MemberAdapters) -> Probe:
        """What the loaded adapter answers, by itself."""
        outputs = await self._outputs(adapter)
        change = max(abs(a - b) for a, b in zip(outputs, self._base, strict=True))
        return Probe(digest=digest, outputs=outputs, change=change, epsilon=self._epsilon)

    async def _outputs(self, adapter: MemberAdapters) -> tuple[float, ...]:
        """Log-probabilities of the watched tokens, or the pooled vector's first values."""
        values: Sequence[float]
        if self._causal is not None:
            tokens = self._tokens[: self._context - adapter.virtual_tokens - 1]
            values = await self._causal.continuations(tokens, self._watched, adapter)
        else:
            assert self._encoder is not None
            values = (
                await self._encoder.pool(
                    [self._tokens[: self._context - 1]], [adapter.lora], Places(1).line()
                )
            )[0, 0, :OUTPUTS].tolist()
        return tuple(values)


def probe_tokens(tokenizer: Any) -> list[int]:
    """Ids of the fixed input, one or more of them of ordinary tokens, whatever the tokenizer's alphabet."""
    known = bool(tokenizer(TEXT, add_special_tokens=False)["input_ids"])
    ids: list[int] = tokenizer(TEXT if known else readable(tokenizer))["input_ids"]
    return ids

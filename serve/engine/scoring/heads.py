"""Label scores from a base that heads read: each adapter's own small one over the pooled vector."""

import asyncio
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open
from vllm import PoolingParams
from vllm.inputs import TokensPrompt
from vllm.lora.request import LoRARequest
from vllm.v1.engine.async_llm import AsyncLLM

from serve.adapter import HEAD, WEIGHTS, adapter_tensors
from serve.adapter.score import BIAS, WEIGHT
from serve.engine.interface import PrepareError, Text
from serve.engine.places import Line
from serve.engine.texts import TextLimit, few_at_a_time
from serve.labels import LabelError

PAIR_MISSING = "This ensemble reads pairs: give a text_pair with every input."
PAIR_UNUSED = "This ensemble reads single texts: leave text_pair out."


@dataclass(frozen=True)
class Head:
    """A linear layer over a text's pooled vector."""

    weight: NDArray[np.float32]
    """[C, hidden], or [C, 4 x hidden] for pairs."""
    bias: NDArray[np.float32]
    """[C]"""
    normalize: bool
    """L2-normalise each pooled vector first."""
    towers: bool
    """Whether it reads pairs: two vectors u and v as [u, v, |u-v|, u*v] (Reimers and Gurevych 2019)."""

    @classmethod
    def read(cls, adapter: Path) -> "Head":
        """That of a checked adapter: `head.safetensors`, or else what PEFT stored as `score`."""
        if not (adapter / HEAD).is_file():
            return cls._read_score(adapter)
        with safe_open(adapter / HEAD, framework="pt") as file:
            metadata = file.metadata() or {}
            weight, bias = (file.get_tensor(name).float().numpy() for name in ("weight", "bias"))
        return cls(
            weight, bias, metadata.get("normalize") == "true", metadata.get("pair") == "towers"
        )

    @classmethod
    def _read_score(cls, adapter: Path) -> "Head":
        stored = adapter_tensors(adapter).tensors
        with safe_open(adapter / WEIGHTS, framework="pt") as file:
            weight = file.get_tensor(stored[WEIGHT].name).float().numpy()
            bias = (
                file.get_tensor(stored[BIAS].name).float().numpy()
                if BIAS in stored
                else np.zeros(len(weight), "f4")
            )
        return cls(weight, bias, normalize=False, towers=False)

    def scores(
        self, pooled: NDArray[np.float32], pair: NDArray[np.float32] | None = None
    ) -> NDArray[np.float64]:
        """[N, C] from the texts' vectors [N, hidden], and for pairs the second texts' ones too."""
        features = self._normalised(pooled)
        if pair is not None:
            second = self._normalised(pair)
            features = np.concatenate(
                [features, second, np.abs(features - second), features * second], axis=-1
            )
        return (features @ self.weight.T + self.bias).astype(np.float64)

    def _normalised(self, pooled: NDArray[np.float32]) -> NDArray[np.float32]:
        if not self.normalize:
            return pooled
        lengths = np.linalg.norm(pooled, axis=-1, keepdims=True)
        return np.asarray(pooled / np.maximum(lengths, 1e-12))


def refuse_mixed(heads: Mapping[str, Head]) -> None:
    """Raises PrepareError where some members' heads read pairs and others single texts."""
    pairs = [name for name, head in heads.items() if head.towers]
    single = [name for name, head in heads.items() if not head.towers]
    if pairs and single:
        raise PrepareError(
            f"The head of member {pairs[0]!r} reads pairs and that of {single[0]!r} single texts: no input could be "
            "answered by both."
        )


@dataclass(frozen=True)
class HeadScores:
    """What the heads of M members say about N inputs."""

    scores: NDArray[np.float64]
    """[M, N, C]"""
    prompt_tokens: int
    """Tokens of all texts, both of a pair, counted once."""


class EncoderPooler:
    """Pooled vectors of texts under adapters, from vLLM's pooling runner."""

    def __init__(self, llm: AsyncLLM) -> None:
        self._llm = llm
        self._tokenizer = llm.get_tokenizer()
        self._context = llm.model_config.max_model_len
        self._limit = TextLimit(self._tokenizer, self._context)

    def tokens(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, special tokens included. Raises LabelError for a text longer than the context, or
        without any token."""
        for text in texts:
            self._limit.check_doubtful(text)
        rows: list[list[int]] = self._tokenizer(list(texts))["input_ids"]
        if not all(rows):
            raise LabelError("A text is empty: there is nothing that a head could read.")
        longest = max(len(row) for row in rows)
        if longest > self._context:
            raise LabelError(
                f"A text is {longest} tokens long, and the model's context is {self._context}: shorten it."
            )
        return rows

    async def score(
        self,
        inputs: Sequence[Text],
        adapters: Sequence[LoRARequest | None],
        heads: Sequence[Head],
        line: Line,
    ) -> HeadScores:
        """`line`: the call's, for places in the engine's queue.

        Raises LabelError for what cannot be scored: a text that is too long, or that comes alone where the heads
        read pairs, or the other way round."""
        towers = heads[0].towers
        if any((each.text_pair is not None) != towers for each in inputs):
            raise LabelError(PAIR_MISSING if towers else PAIR_UNUSED)
        texts = [each.text for each in inputs]
        texts += [each.text_pair for each in inputs if each.text_pair is not None]
        self._limit.check(texts)
        rows: list[list[int]] = []
        for few in few_at_a_time(texts):
            rows += await asyncio.to_thread(self.tokens, few)
        pooled = await self.pool(rows, adapters, line)
        first, second = pooled[:, : len(inputs)], pooled[:, len(inputs) :]
        scores = [
            head.scores(first[member], second[member] if towers else None)
            for member, head in enumerate(heads)
        ]
        return HeadScores(np.stack(scores), sum(len(row) for row in rows))

    async def pool(
        self, rows: Sequence[Sequence[int]], adapters: Sequence[LoRARequest | None], line: Line
    ) -> NDArray[np.float32]:
        """[M, N, hidden] for M adapters and N texts."""
        vectors = await line.each(
            partial(self._pool_one, row, adapter) for adapter in adapters for row in rows
        )
        return np.stack(vectors).reshape(len(adapters), len(rows), -1)

    async def _pool_one(
        self, row: Sequence[int], adapter: LoRARequest | None
    ) -> NDArray[np.float32]:
        prompt = TokensPrompt(prompt_token_ids=list(row))
        params = PoolingParams(task="embed", use_activation=False)
        last = None
        async for output in self._llm.encode(
            prompt, params, f"pool-{uuid.uuid4().hex}", lora_request=adapter
        ):
            last = output
        assert last is not None, "vLLM ends every request with an output"
        vector: NDArray[np.float32] = last.outputs.data.float().numpy()
        return vector

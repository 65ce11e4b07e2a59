"""Label scores from an encoder base: each adapter's own small head over the pooled vector."""

import asyncio
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open
from vllm import PoolingParams
from vllm.inputs import TokensPrompt
from vllm.lora.request import LoRARequest
from vllm.v1.engine.async_llm import AsyncLLM

from serve.engine.interface import PrepareError
from serve.labels import LabelError


@dataclass(frozen=True)
class Head:
    """A linear layer over the mean of the token vectors, as `head.safetensors` holds it."""

    weight: NDArray[np.float32]
    """[C, hidden]"""
    bias: NDArray[np.float32]
    """[C]"""
    normalize: bool
    """L2-normalise the pooled vector first."""

    @classmethod
    def read(cls, adapter: Path) -> "Head":
        """Raises PrepareError for a head that is not served yet."""
        with safe_open(adapter / "head.safetensors", framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("pair"):
                raise PrepareError("Heads over sentence pairs (pair=towers) are not served yet.")
            weight, bias = (file.get_tensor(name).float().numpy() for name in ("weight", "bias"))
        return cls(weight, bias, metadata.get("normalize") == "true")

    def scores(self, pooled: NDArray[np.float32]) -> NDArray[np.float64]:
        """[N, C] from [N, hidden]."""
        if self.normalize:
            pooled = pooled / np.maximum(np.linalg.norm(pooled, axis=-1, keepdims=True), 1e-12)
        return (pooled @ self.weight.T + self.bias).astype(np.float64)


class EncoderPooler:
    """Pooled vectors of texts under adapters, from vLLM's pooling runner."""

    def __init__(self, llm: AsyncLLM) -> None:
        self._llm = llm
        self._tokenizer = llm.get_tokenizer()
        self._context = llm.model_config.max_model_len

    def tokens(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, special tokens included. Raises LabelError for a text longer than the context."""
        rows: list[list[int]] = self._tokenizer(list(texts))["input_ids"]
        longest = max(len(row) for row in rows)
        if longest > self._context:
            raise LabelError(
                f"A text is {longest} tokens long, and the model's context is {self._context}: shorten it."
            )
        return rows

    async def pool(
        self, rows: Sequence[Sequence[int]], adapters: Sequence[LoRARequest | None]
    ) -> NDArray[np.float32]:
        """[M, N, hidden] for M adapters and N texts, as one batch."""
        vectors = await asyncio.gather(
            *(self._pool_one(row, adapter) for adapter in adapters for row in rows)
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

"""Label scores from heads: each adapter has its own small head, which reads the pooled vector of a text."""

import asyncio
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from vllm.inputs import TokensPrompt
from vllm.lora.request import LoRARequest
from vllm.v1.engine.async_llm import AsyncLLM

from serve.adapter import Head, adapter_kind, has_head
from serve.base.folder import BaseShapes, Pooling
from serve.base.positions import longest_text
from serve.base.two_towers import towers_of
from serve.engine.interface import PrepareError, Text
from serve.engine.limits.fair_queue import CallQueue
from serve.engine.limits.text_limit import TextLimit, few_at_a_time
from serve.engine.scoring.joined import Joined, join
from serve.engine.scoring.pictures import TOKENS, Picture, Pictures
from serve.engine.scoring.prediction import BaseVectors
from serve.engine.vllm_hooks.plain_pooling import pooling_params
from serve.images.limits import ImageLimits
from serve.labels import LabelError
from serve.manifest import Ensemble, Member
from serve.watching import spans

PAIR_MISSING = "This ensemble reads pairs: give a text_pair with every input."
PAIR_UNUSED = "This ensemble reads single texts: leave text_pair out."
IMAGE_UNUSED = (
    "Over the base of this ensemble, only texts are read: give a text in place of the image."
)
_IMAGE_WITH_TEXT = (
    "Over the base of this ensemble, an image stands alone: give it and a text as two inputs."
)
_IMAGE_IN_PAIR = "This ensemble reads pairs of texts: give a text and a text_pair with every input."

Row: TypeAlias = Sequence[int] | Joined | Picture
"""The token ids of a text, a pair as one text, or an image."""


def refuse_mixed(heads: Mapping[str, Head]) -> None:
    """Raises PrepareError if some members' heads read pairs and others read single texts."""
    pairs = [name for name, head in heads.items() if head.towers]
    single = [name for name, head in heads.items() if not head.towers]
    if pairs and single:
        raise PrepareError(
            f"The head of member {pairs[0]!r} reads pairs, and the head of {single[0]!r} reads single texts: no input "
            "suits both."
        )


@dataclass(frozen=True)
class HeadScores:
    """Scores of C labels (or values) for N inputs by the heads of M members."""

    scores: NDArray[np.float64]
    """[M, N, C]"""
    prompt_tokens: int
    """Tokens of all texts, counted once; both texts of a pair count."""


def read_head(
    folder: Path, member: Member, ensemble: Ensemble, base: BaseShapes | None
) -> dict[str, Head]:
    """Returns the head in an adapter's folder, by the member's name; none where the ensemble's prompts stand for heads.
    Raises PrepareError if it does not suit the ensemble, and AdapterError if a part of it is missing."""
    if (kind := adapter_kind(folder)) != "lora":
        raise PrepareError(
            f"Member {member.name!r} has an adapter of the kind {kind}, and an encoder base takes plain LoRA only."
        )
    if ensemble.prompts:
        if has_head(folder):
            raise PrepareError(
                f"The adapter of member {member.name!r} has a head, and this ensemble classifies by its prompts: leave "
                "out the head or the prompts."
            )
        return {}
    head = Head.read(folder, base)
    if len(head.bias) != ensemble.head_rows:
        raise PrepareError(
            f"The head of member {member.name!r} has {len(head.bias)} rows, and the ensemble needs "
            f"{ensemble.head_rows}."
        )
    return {member.name: head}


class EncoderPooler:
    """Pooled vectors of texts and images under adapters, from vLLM's pooling runner."""

    def __init__(self, llm: AsyncLLM, tokenizer: Any, images: ImageLimits | None = None) -> None:
        """`images`: how large they may be, if the base reads any."""
        config = llm.model_config.hf_config.to_dict()
        towers = towers_of(config)
        self.pictures = None if towers is None else Pictures(llm, images or ImageLimits())
        self._filled: dict[str, Any] = {}
        if towers is not None and towers.fills:
            self._filled = {"padding": "max_length", "max_length": longest_text(config)}
        self._config = config
        self._llm = llm
        self.vocabulary = llm.model_config.get_vocab_size()
        self._tokenizer = tokenizer
        self.context = llm.model_config.max_model_len
        self._limit = TextLimit(self._tokenizer, self.context)

    @property
    def fills(self) -> bool:
        """Whether texts are filled up with padding tokens, which count."""
        return bool(self._filled)

    def tokens(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns the token ids of each text, with special tokens.

        Raises LabelError for a text that is longer than the context or has no token."""
        for text in texts:
            self._limit.check_doubtful(text)
        rows: list[list[int]] = self._tokenizer(list(texts), **self._filled)["input_ids"]
        if not all(rows):
            raise LabelError("A text is empty: give a text with at least one token.")
        longest = max(len(row) for row in rows)
        if longest > self.context:
            raise LabelError(
                f"A text is {longest} tokens long, and the model's context is {self.context}: shorten it."
            )
        return rows

    async def score(
        self,
        inputs: Sequence[Text],
        adapters: Sequence[LoRARequest | None],
        heads: Sequence[Head],
        queue: CallQueue,
    ) -> HeadScores:
        """Returns the scores of all inputs by all members. `adapters` and `heads`: one for each member.

        `queue`: gives the call's texts places in the engine's queue. Raises LabelError for a text that is too long, and
        for a single text where the heads read pairs, or the other way round."""
        towers = heads[0].towers
        pairs = [each.text_pair is not None for each in inputs]
        images = any(each.image is not None for each in inputs)
        if towers and images:
            raise LabelError(IMAGE_UNUSED if self.pictures is None else _IMAGE_IN_PAIR)
        if towers and not all(pairs):
            raise LabelError(PAIR_MISSING)
        if towers or not any(pairs):
            rows = await self.rows(inputs, len(heads))
        elif images or not all(head.joins for head in heads):
            raise LabelError(PAIR_UNUSED)
        else:
            rows = await self._joined(inputs)
        pooled = await self.pool(rows, adapters, queue, [head.pooling for head in heads])
        first, second = pooled[:, : len(inputs)], pooled[:, len(inputs) :]
        scores = [
            head.scores(first[member], second[member] if towers else None)
            for member, head in enumerate(heads)
        ]
        return HeadScores(np.stack(scores), sum(map(length, rows)))

    async def plain(self, queue: CallQueue, inputs: Sequence[Text]) -> BaseVectors:
        """Returns the base's vectors of the inputs, without adapters. Raises LabelError for a text that is too long."""
        rows = await self.rows(inputs, 1)
        (pooled,) = await self.pool(rows, [None], queue)
        towers = np.split(pooled.astype(np.float64), len(rows) // len(inputs))
        return BaseVectors(np.concatenate(towers, axis=1), sum(map(length, rows)))

    async def rows(self, inputs: Sequence[Text], readers: int) -> list[Row]:
        """Returns what stands for each input, and then the token ids of all second texts of pairs. `readers`: how many
        adapters read them. Raises LabelError for a text that is too long, and for an image that is not read."""
        texts = [each.text for each in inputs if each.image is None]
        texts += [each.text_pair for each in inputs if each.text_pair is not None]
        self._limit.check(texts)
        tokens: list[list[int]] = []
        for few in few_at_a_time(texts):
            tokens += await asyncio.to_thread(self.tokens, few)
        written = iter(tokens)
        rows: list[Row] = []
        for number, each in enumerate(inputs):
            if each.image is None:
                rows.append(next(written))
            elif self.pictures is None:
                raise LabelError(IMAGE_UNUSED)
            elif each.text:
                raise LabelError(_IMAGE_WITH_TEXT)
            else:
                name = f"input[{number}].image" if len(inputs) > 1 else "input.image"
                rows.append(self.pictures.of_url(each.image, name, readers))
        return [*rows, *written]

    async def _joined(self, inputs: Sequence[Text]) -> list[Row]:
        """Returns the token ids of each input, whose two texts are joined. Raises LabelError for one that is too
        long."""
        whole = [each.text + (each.text_pair or "") for each in inputs]
        self._limit.check(whole)
        rows: list[Row] = []
        for few in few_at_a_time(whole):
            part = inputs[len(rows) : len(rows) + len(few)]
            rows += await asyncio.to_thread(self._join, part)
        return rows

    def _join(self, inputs: Sequence[Text]) -> list[Row]:
        rows: list[Row] = []
        for each in inputs:
            if each.text_pair is None:
                rows += self.tokens([each.text])
                continue
            self._limit.check_doubtful(each.text)
            self._limit.check_doubtful(each.text_pair)
            rows.append(
                join(self._tokenizer, self._config, each.text, each.text_pair, self.context)
            )
        return rows

    async def pool(
        self,
        rows: Sequence[Row],
        adapters: Sequence[LoRARequest | None],
        queue: CallQueue,
        poolings: Sequence[Pooling | None] | None = None,
    ) -> NDArray[np.float32]:
        """Returns the pooled vectors [M, N, hidden] of N texts and images under M adapters. `poolings`: which vector of
        a text is asked for, one for each adapter; by default the engine's own."""
        asked = poolings or [None] * len(adapters)
        jobs = {
            (member, place): partial(self._pool_one, row, adapter, pooling)
            for member, (adapter, pooling) in enumerate(zip(adapters, asked, strict=True))
            for place, row in enumerate(rows)
        }
        order = list(jobs)
        if any(isinstance(row, Picture) for row in rows):
            # Input by input, so that an image is forgotten before the last one is decoded. Texts go adapter by adapter,
            # whose rows are then neighbours in the batch.
            order.sort(key=lambda job: job[1])
        vectors = await queue.run_all(jobs[each] for each in order)
        found = dict(zip(order, vectors, strict=True))
        return np.stack([found[each] for each in jobs]).reshape(len(adapters), len(rows), -1)

    async def _pool_one(
        self, row: Row, adapter: LoRARequest | None, pooling: Pooling | None
    ) -> NDArray[np.float32]:
        second = None
        if isinstance(row, Picture):
            prompt = await row.prompt()
        elif isinstance(row, Joined):
            prompt, second = TokensPrompt(prompt_token_ids=list(row.tokens)), row.second
        else:
            prompt = TokensPrompt(prompt_token_ids=list(row))
        params = pooling_params(pooling, second)
        last = None
        async for output in self._llm.encode(
            prompt,
            params,
            f"pool-{uuid.uuid4().hex}",
            lora_request=adapter,
            trace_headers=spans.carried(),
        ):
            last = output
        assert last is not None, "vLLM ends every request with an output"
        vector: NDArray[np.float32] = last.outputs.data.float().numpy()
        return vector


def length(row: Row) -> int:
    """Returns how many tokens an input counts as."""
    return TOKENS if isinstance(row, Picture) else len(row)

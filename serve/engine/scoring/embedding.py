"""Answers `/v1/embeddings`: the pooled vectors of texts, under the plain base or under one member's LoRA."""

from collections.abc import Callable, Sequence
from typing import TypeGuard

import numpy as np

from serve.base.folder import BaseError, Pooling, pooling_of, read_config
from serve.base.side_files import read_pooling
from serve.engine.adapters.base_folder import base_folder
from serve.engine.adapters.member_adapters import MemberAdapters
from serve.engine.interface import MEMBER_FAILED, EmbedCall, Embeddings, EngineSettings, Text
from serve.engine.limits.fair_queue import CallQueue
from serve.engine.loaded import LoadedVersion, absent_refusal, members_of
from serve.engine.scoring.heads import EncoderPooler, Row, length
from serve.errors import Refusal
from serve.labels import LabelError
from serve.manifest import Member

NO_VECTORS = Refusal(
    400,
    "The base writes text and gives no vectors: /v1/embeddings needs an encoder base, or a causal one whose "
    'bundle.json says "kind": "encoder".',
    param="model",
)


class Embedder:
    """Vectors of texts. A member's vector is the one that its head reads; the base's is the one that the base was
    trained to give, as its `1_Pooling` says."""

    def __init__(self, pooler: EncoderPooler, settings: EngineSettings) -> None:
        self._pooler = pooler
        self._of_base: Pooling | None = None
        self._unserved: str | None = None
        """Why the base's own vector cannot be given."""
        folder = base_folder(settings)
        if folder is not None and pooling_of(read_config(folder)) == "mean":
            try:
                self._of_base = read_pooling(folder)
            except BaseError as error:
                self._unserved = str(error)

    async def embed(
        self,
        loaded: LoadedVersion,
        call: EmbedCall,
        adapters_of: Callable[[Member], MemberAdapters],
        queue: CallQueue,
    ) -> Embeddings | Refusal:
        """Returns the vectors of the call's inputs; a refusal if an input is empty or too long, or has tokens that the
        base does not know, if the base pools its texts in an unserved way, or if the member could not be loaded.

        `queue`: gives the inputs places in the engine's queue."""
        if (refusal := absent_refusal(loaded, call.member)) is not None:
            return refusal
        if call.member is None and self._unserved is not None:
            reason = f"The base has no vector to give. {self._unserved} Name a member, as ensemble/member."
            return Refusal(400, reason, param="model")
        try:
            rows = await self._rows(call.inputs)
        except LabelError as error:
            return Refusal(400, str(error), param="input")
        lora, pooling = None, self._of_base
        if call.member is not None:
            (member,) = members_of(loaded.ensemble, call.member)
            lora, pooling = adapters_of(member).lora, loaded.heads[member.name].pooling
        (vectors,) = await self._pooler.pool(rows, [lora], queue, [pooling])
        if not np.isfinite(vectors).all():
            reason = f"{call.version} cannot answer this: a vector has values that are no numbers."
            return Refusal(500, reason, MEMBER_FAILED)
        if call.normalize:
            lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
            vectors = (vectors / np.maximum(lengths, 1e-12)).astype(np.float32)
        return Embeddings(vectors, sum(map(length, rows)))

    async def _rows(self, inputs: tuple[str, ...] | tuple[tuple[int, ...], ...]) -> Sequence[Row]:
        """Returns the inputs' token ids. Raises LabelError."""
        if not _are_tokens(inputs):
            return await self._pooler.rows([Text(str(each)) for each in inputs], 1)
        if self._pooler.fills:
            raise LabelError(
                "Over this base a text is filled up with padding tokens, which token ids would lack: send texts."
            )
        longest, context = max(map(len, inputs)), self._pooler.context
        if longest > context:
            raise LabelError(
                f"A text is {longest} tokens long, and the model's context is {context}: shorten it."
            )
        highest = max(map(max, inputs))
        if highest >= self._pooler.vocabulary:
            raise LabelError(
                f"The token id {highest} is not one of the base's {self._pooler.vocabulary:,}: send texts, or the ids "
                "of its own tokenizer."
            )
        return inputs


def _are_tokens(
    inputs: tuple[str, ...] | tuple[tuple[int, ...], ...],
) -> TypeGuard[tuple[tuple[int, ...], ...]]:
    return not isinstance(inputs[0], str)

"""Pools a base's vectors as its last layer gives them, in the way that each request asks for.

vLLM 0.32 has one way of pooling for an engine. Here it is the mean over the tokens, and a request may ask for the first
or the last token's vector instead, because each adapter's head says what it reads. vLLM also reads `modules.json` and
applies the `Dense` layers in it after the pooling. No setting turns that off. Heads are trained on the pooled vector
itself (`serve/base/side_files.py`)."""

from typing import Any

import torch
from vllm import PoolingParams
from vllm.model_executor.layers.pooler.seqwise.methods import MeanPool
from vllm.model_executor.models import adapters
from vllm.v1.pool.metadata import PoolingMetadata

from serve.base.folder import Pooling

_ASKED = "choir_pooling"
"""The key of a request's own pooling in vLLM's parameters."""


_SECOND = "compressed_token_type_ids"
"""vLLM's key of the place from which on tokens have the type 1. It passes the types to the model."""


def pooling_params(pooling: Pooling | None, second: int | None = None) -> PoolingParams:
    """Returns vLLM's parameters of a request for a pooled vector. `pooling`: of the head that reads it; None: the
    engine's own. `second`: where the tokens of the type 1 begin, if there are any."""
    asked = {_ASKED: pooling, _SECOND: second}
    given = {key: value for key, value in asked.items() if value is not None}
    return PoolingParams(task="embed", use_activation=False, extra_kwargs=given or None)


def install() -> None:
    """Makes vLLM find no such layers, and pool as requests ask."""
    adapters.try_get_dense_modules = _none
    mean = MeanPool.forward

    def forward(
        self: MeanPool, hidden_states: torch.Tensor, pooling_metadata: PoolingMetadata
    ) -> Any:
        pooled = mean(self, hidden_states, pooling_metadata)
        cursor = pooling_metadata.get_pooling_cursor()
        for row, params in enumerate(pooling_metadata.pooling_params):
            asked = (params.extra_kwargs or {}).get(_ASKED)
            if asked in ("cls", "last"):
                places = (
                    cursor.first_token_indices_gpu
                    if asked == "cls"
                    else cursor.last_token_indices_gpu
                )
                pooled[row] = hidden_states[places[row]]
        return pooled

    MeanPool.forward = forward


def _none(model: Any, revision: str | None = None) -> None:
    return None

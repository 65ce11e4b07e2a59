"""Loads BERTs as they are published, without the head of their pretraining.

A checkpoint such as `bert-base-uncased` names its weights after a model with a head (`bert.encoder...`, `cls...`).
vLLM's model has the backbone alone, and fails on both kinds of names. `serve/base/architectures.py` says which bases
these models serve."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from vllm.config import VllmConfig
from vllm.model_executor.models.bert import BertEmbeddingModel, _encode_token_type_ids
from vllm.model_executor.models.utils import WeightsMapper

Weights = Iterable[tuple[str, torch.Tensor]]


class BertBackbone(BertEmbeddingModel):
    """The backbone of a BERT, or of an ELECTRA, which has the same layers."""

    hf_to_vllm_mapper = BertEmbeddingModel.hf_to_vllm_mapper | WeightsMapper(
        orig_to_new_prefix={"electra.": "model."}
    )
    """Also maps the names of an adapter's modules."""

    def forward(
        self,
        input_ids: torch.Tensor,
        positions: torch.Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Returns the last layer's vectors. `token_type_ids` are written into the token ids, where vLLM's embeddings
        look for them, as in its own classifiers."""
        if token_type_ids is not None:
            _encode_token_type_ids(input_ids, token_type_ids)
        states: torch.Tensor = super().forward(
            input_ids, positions, intermediate_tensors, inputs_embeds
        )
        return states

    def load_weights(self, weights: Weights) -> set[str]:
        loaded: set[str] = super().load_weights(backbone(weights, self.config.model_type))
        return loaded


_IN_BERT = WeightsMapper(
    orig_to_new_substr={
        "attention.q_lin": "attention.self.query",
        "attention.k_lin": "attention.self.key",
        "attention.v_lin": "attention.self.value",
        "attention.out_lin": "attention.output.dense",
        "sa_layer_norm": "attention.output.LayerNorm",
        "ffn.lin1": "intermediate.dense",
        "ffn.lin2": "output.dense",
        "output_layer_norm": "output.LayerNorm",
    },
    orig_to_new_prefix={
        "distilbert.": "",
        "transformer.": "model.encoder.",
        "embeddings.": "model.embeddings.",
    },
)
"""DistilBERT's names -> those of the same layers in vLLM's BERT."""


class DistilBertBackbone(BertEmbeddingModel):
    """The backbone of a DistilBERT: a BERT without types of tokens (Sanh et al. 2019), under other names."""

    hf_to_vllm_mapper = _IN_BERT

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        config = vllm_config.model_config.hf_config
        config.intermediate_size = config.hidden_dim
        config.hidden_act = config.activation
        config.layer_norm_eps = 1e-12  # transformers' DistilBERT has it in its code
        config.type_vocab_size = 1
        super().__init__(vllm_config=vllm_config, prefix=prefix)

    def load_weights(self, weights: Weights) -> set[str]:
        types = torch.zeros(1, self.config.hidden_size)
        own = [*_IN_BERT.apply(backbone(weights, "distilbert"))]
        loaded: set[str] = super().load_weights(
            [*own, ("model.embeddings.token_type_embeddings.weight", types)]
        )
        return loaded


def backbone(weights: Weights, name: str) -> Iterator[tuple[str, torch.Tensor]]:
    """Yields the weights of the backbone `name`, by the names that they have in the backbone.

    The names of a checkpoint without a head stay as they are."""
    listed = list(weights)
    prefix = f"{name}."
    inside = [(key.removeprefix(prefix), value) for key, value in listed if key.startswith(prefix)]
    yield from inside or listed

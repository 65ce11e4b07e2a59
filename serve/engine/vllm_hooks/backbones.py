"""Loads BERTs as they are published, without the head of their pretraining.

A checkpoint such as `bert-base-uncased` names its weights after a model with a head (`bert.encoder...`, `cls...`).
vLLM's model has the backbone alone, and fails on both kinds of names. `serve/base/architectures.py` says which bases
this model serves."""

from collections.abc import Iterable, Iterator

import torch
from vllm import ModelRegistry
from vllm.model_executor.models.bert import BertEmbeddingModel
from vllm.model_executor.models.utils import WeightsMapper

from serve.base.architectures import BERT_BACKBONE

Weights = Iterable[tuple[str, torch.Tensor]]


class BertBackbone(BertEmbeddingModel):
    """The backbone of a BERT, or of an ELECTRA, which has the same layers."""

    hf_to_vllm_mapper = BertEmbeddingModel.hf_to_vllm_mapper | WeightsMapper(
        orig_to_new_prefix={"electra.": "model."}
    )
    """Also maps the names of an adapter's modules."""

    def load_weights(self, weights: Weights) -> set[str]:
        loaded: set[str] = super().load_weights(backbone(weights, self.config.model_type))
        return loaded


def backbone(weights: Weights, name: str) -> Iterator[tuple[str, torch.Tensor]]:
    """Yields the weights of the backbone `name`, by the names that they have in the backbone.

    The names of a checkpoint without a head stay as they are."""
    listed = list(weights)
    prefix = f"{name}."
    inside = [(key.removeprefix(prefix), value) for key, value in listed if key.startswith(prefix)]
    yield from inside or listed


def register() -> None:
    """Adds the model to vLLM's registry in this process."""
    ModelRegistry.register_model(BERT_BACKBONE, BertBackbone)

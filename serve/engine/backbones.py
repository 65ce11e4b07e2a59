"""BERTs as they are published, with the head of their pretraining: vLLM's own model of them, which leaves it behind.

A checkpoint such as `bert-base-uncased` names its weights after a model with a head (`bert.encoder...`, `cls...`). vLLM
has a model of the backbone alone, and ends on both. `serve/base/architectures.py` says which bases are served by it."""

from collections.abc import Iterable, Iterator

import torch
from vllm import ModelRegistry
from vllm.model_executor.models.bert import BertEmbeddingModel
from vllm.model_executor.models.utils import WeightsMapper

from serve.base.architectures import BERT_BACKBONE

Weights = Iterable[tuple[str, torch.Tensor]]


class BertBackbone(BertEmbeddingModel):
    """Of a BERT, or of an ELECTRA, whose layers are the same."""

    hf_to_vllm_mapper = BertEmbeddingModel.hf_to_vllm_mapper | WeightsMapper(
        orig_to_new_prefix={"electra.": "model."}
    )
    """The names of an adapter's modules."""

    def load_weights(self, weights: Weights) -> set[str]:
        loaded: set[str] = super().load_weights(backbone(weights, self.config.model_type))
        return loaded


def backbone(weights: Weights, name: str) -> Iterator[tuple[str, torch.Tensor]]:
    """The weights of the backbone `name` by the names that they have in it. A checkpoint without a head has those
    already."""
    listed = list(weights)
    prefix = f"{name}."
    inside = [(key.removeprefix(prefix), value) for key, value in listed if key.startswith(prefix)]
    yield from inside or listed


def register() -> None:
    """Tell vLLM's registry of this process."""
    ModelRegistry.register_model(BERT_BACKBONE, BertBackbone)

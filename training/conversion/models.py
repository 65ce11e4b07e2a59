"""Loads the models that a conversion compares: the base, and the base with an adapter or the fully tuned model."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
)

from serve.adapter.classifiers import STEM, is_output, is_part
from serve.adapter.folder import WEIGHTS
from serve.base.attention import attention_of
from serve.base.folder import BaseError, kind_of, read_config
from serve.tensors import TensorFile
from training.conversion.errors import ConversionError


class Models:
    """Loads models of one class over one base, in float32."""

    def __init__(self, base: Path, labels: int | None) -> None:
        """`labels` is the number of a sequence classifier's labels; None if the model is none. Raises
        ConversionError."""
        self.base = base
        self.labels = labels
        try:
            self.config = read_config(base)
            kind = kind_of(self.config)
        except BaseError as error:
            raise ConversionError(str(error)) from error
        self.kind = "encoder" if labels is not None else kind
        self._loader: Any = AutoModelForSequenceClassification
        if labels is None:
            self._loader = AutoModelForCausalLM if kind == "causal" else AutoModel

    def plain(self, folder: Path | None = None) -> Any:
        """Returns the base, or the model in a `folder` as a model of the base's class. The head of a sequence
        classifier, which the base lacks, has the same random values each time. Raises ConversionError."""
        source = folder or self.base
        torch.manual_seed(0)
        given = {} if self.labels is None else {"num_labels": self.labels}
        try:
            attention = attention_of(AutoConfig.from_pretrained(source).to_dict())
            return self._loader.from_pretrained(
                source,
                dtype=torch.float32,
                attn_implementation=attention,
                use_safetensors=True,
                **given,
            )
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            raise ConversionError(f"transformers cannot load {source}: {error}") from error

    def adapted(self, adapter: Path) -> Any:
        """Returns the base with an adapter. Raises ConversionError if PEFT refuses it, or leaves out a part of it."""
        try:
            model: Any = PeftModel.from_pretrained(self.plain(), str(adapter)).eval()
            places = {*get_peft_model_state_dict(model), *model.state_dict()}
        except Exception as error:  # PEFT raises many types for a folder that does not fit
            raise ConversionError(f"PEFT cannot load the adapter: {error}") from error
        # PEFT is silent about tensors that have no place in the model.
        unused = next(
            (name for name in TensorFile(adapter / WEIGHTS).tensors if name not in places), None
        )
        if unused is not None:
            raise ConversionError(
                f"The base has no place for {unused!r}, so that PEFT would leave it out: the adapter was trained on "
                "another base, or on another class of this one."
            )
        return model


def labels_of(tensors: Mapping[str, torch.Tensor]) -> int | None:
    """Returns the labels of the classifier's head among an adapter's tensors; None if it has none."""
    heads = [tensor for name, tensor in tensors.items() if is_output(name)]
    return len(heads[0]) if heads else None


def classifier_labels(config: Mapping[str, Any]) -> int | None:
    """Returns the labels of a sequence classifier by its `config.json`; None if the model is none."""
    names = config.get("architectures") or [""]
    if not str(names[0]).endswith("ForSequenceClassification"):
        return None
    names = config.get("id2label")
    return len(names) if isinstance(names, dict) else int(config.get("num_labels", 2))


def head_tensors(model: Any) -> dict[str, torch.Tensor]:
    """Returns the parameters of a sequence classifier's head, by the names that PEFT saves them under."""
    named = {f"{STEM}{name}": value.detach() for name, value in model.named_parameters()}
    return {name: value.contiguous().clone() for name, value in named.items() if is_part(name)}

"""The heads of transformers' sequence classifiers, and the names of their tensors.

For the task type SEQ_CLS, PEFT trains the head of transformers' `...ForSequenceClassification` beside the LoRA, and
saves its parts as whole modules. It lists `classifier` and `score` in `modules_to_save`, and a user may list more.
Which vector of a text such a head reads, and which layers it has, differs from family to family.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from serve.base.folder import Pooling

STEM = "base_model.model."
"""What all tensors of an adapter begin with."""
PARTS = ("classifier", "pre_classifier", "score", "head", "pooler", "bert.pooler")
"""The modules that belong to a head in one of the families."""
LISTED = frozenset({*PARTS, "dense", "out_proj", "head.dense", "head.norm", "bert.pooler.dense"})
"""The names in `modules_to_save` that stand for a head or a part of it. PEFT lists `classifier` and `score` for every
sequence classifier, also the one that its model lacks."""


@dataclass(frozen=True)
class Classifier:
    """The head of one family's sequence classifier."""

    pooling: Pooling
    """Which vector of a text it reads."""
    output: str
    """The module of the last layer, which has a row for each label."""
    hidden: str | None = None
    """The module of the layer before it."""
    activation: str = ""
    """What follows the hidden layer."""
    norm: str | None = None
    """The module of the layer normalisation behind the activation."""
    epsilon: float = 0.0
    """Of the layer normalisation."""

    @property
    def modules(self) -> tuple[str, ...]:
        return tuple(each for each in (self.hidden, self.norm, self.output) if each is not None)


_LAST_TOKEN = Classifier("last", "score")
_TWO_LAYERS = Classifier("cls", "classifier.out_proj", "classifier.dense", "tanh")
_FAMILIES: Mapping[str, Classifier] = {
    "bert": Classifier("cls", "classifier", "bert.pooler.dense", "tanh"),
    "camembert": _TWO_LAYERS,
    "distilbert": Classifier("cls", "classifier", "pre_classifier", "relu"),
    "electra": Classifier("cls", "classifier.out_proj", "classifier.dense", "gelu"),
    "roberta": _TWO_LAYERS,
    "xlm-roberta": _TWO_LAYERS,
}
"""By `model_type`. A causal model's head is `score`, which reads the last token's vector."""


def classifier_of(config: Mapping[str, Any], *, causal: bool) -> Classifier | None:
    """Returns the head of transformers' sequence classifier over a base with this `config.json`; None if the family is
    not known. `causal` says that the base is a causal model."""
    if causal:
        return _LAST_TOKEN
    model = str(config.get("model_type"))
    if model == "modernbert":
        return Classifier(
            "mean" if config.get("classifier_pooling") == "mean" else "cls",
            "classifier",
            "head.dense",
            str(config.get("classifier_activation", "gelu")),
            "head.norm",
            float(config.get("norm_eps", 1e-5)),
        )
    return _FAMILIES.get(model)


def is_part(tensor: str) -> bool:
    """Returns whether a tensor of an adapter is a weight or bias of a head that PEFT saved."""
    module = tensor.removeprefix(STEM)
    return (
        tensor.startswith(STEM)
        and ".lora_" not in tensor
        and module.rpartition(".")[2] in ("weight", "bias")
        and any(module.startswith(f"{part}.") for part in PARTS)
    )


def is_output(tensor: str) -> bool:
    """Returns whether a tensor of an adapter is the weight of such a head's last layer."""
    outputs = ("score", "classifier", "classifier.out_proj")
    return tensor in {f"{STEM}{output}.weight" for output in outputs}

"""The base model's folder: what kind it is, and the shapes of its weights."""

import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeAlias

from serve.errors import UserError
from serve.tensors import TensorError, TensorFile

BaseKind: TypeAlias = Literal["causal", "encoder"]
"""How a base is used: it scores labels as text and writes, or it turns texts into vectors, which the members' heads
read. A causal model can do either, as `bundle.json` says."""
Pooling: TypeAlias = Literal["mean", "last"]

_CAUSAL = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
_ENCODERS = (
    "albert",
    "bert",
    "camembert",
    "distilbert",
    "electra",
    "modernbert",
    "mpnet",
    "nomic_bert",
    "roberta",
    "xlm-roberta",
)


class BaseError(UserError, ValueError):
    """A base that cannot be used, in words for whoever gave it."""


def kind_of(config: dict[str, Any]) -> BaseKind:
    """The kind of base that a Hugging Face `config.json` describes. Raises BaseError if it is
    neither."""
    if _causal(config):
        return "causal"
    if config.get("model_type") in _ENCODERS:
        return "encoder"
    raise BaseError(
        f"The base is of an unknown kind (architectures {config.get('architectures')}, model_type "
        f"{config.get('model_type')!r}); "
        'say "kind": "causal" or "kind": "encoder" in bundle.json.'
    )


def pooling_of(config: dict[str, Any]) -> Pooling:
    """Which vector of a text heads read over a base with this `config.json`: the mean over its tokens; under a causal
    model, where no token sees those behind it, the last one's."""
    causal = _causal(config) and config.get("model_type") not in _ENCODERS
    return "last" if causal else "mean"


def _causal(config: dict[str, Any]) -> bool:
    return any(name.endswith(_CAUSAL) for name in config.get("architectures") or [])


@dataclass(frozen=True)
class BaseShapes:
    """The weights of a base by name, from the headers of its safetensors files."""

    weights: dict[str, tuple[int, ...]]
    config: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> "BaseShapes":
        """Raises BaseError for a folder without `config.json` or without sound safetensors
        weights."""
        weights: dict[str, tuple[int, ...]] = {}
        try:
            for path in _weight_files(folder):
                weights |= {name: tensor.shape for name, tensor in TensorFile(path).tensors.items()}
        except TensorError as error:
            raise BaseError(f"The base {folder} cannot be read: {error}") from error
        return cls(weights, read_config(folder))

    @property
    def hidden(self) -> int | None:
        """Width of the vectors that a head reads."""
        hidden = self.config.get("hidden_size", self.config.get("dim"))
        return hidden if isinstance(hidden, int) else None

    @property
    def text_config(self) -> dict[str, Any]:
        """The part of the config that is about text; all of it, unless the model reads more than text."""
        nested = self.config.get("text_config")
        return nested if isinstance(nested, dict) else self.config

    def find(self, module: str) -> tuple[int, ...] | None:
        """The weight's shape of `module`, as PEFT names modules; None if the base has no such
        module.

        A checkpoint may have been written by a model with a head or without one, so that either
        name may carry one leading component (`model.`, `bert.`) that the other lacks. A tied
        `lm_head` is stored as the embedding only."""
        _, _, shorter = module.partition(".")
        for shape in (self._full.get(module), self._shortened.get(module), self._full.get(shorter)):
            if shape is not None:
                return shape
        if module.rpartition(".")[2] == "lm_head" and self.config.get("tie_word_embeddings", True):
            return next(
                (s for name, s in self._full.items() if name.endswith("embed_tokens")), None
            )
        return None

    @cached_property
    def _full(self) -> dict[str, tuple[int, ...]]:
        weights = self.weights.items()
        return {n.removesuffix(".weight"): shape for n, shape in weights if n.endswith(".weight")}

    @cached_property
    def _shortened(self) -> dict[str, tuple[int, ...]]:
        return {name.partition(".")[2]: shape for name, shape in self._full.items()}


def read_config(folder: Path) -> dict[str, Any]:
    """A model folder's `config.json`. Raises BaseError."""
    path = folder / "config.json"
    try:
        config = json.loads(path.read_bytes())
    except OSError as error:
        raise BaseError(
            f"The base {folder} has no readable config.json; expected a Hugging Face model folder."
        ) from error
    except ValueError as error:
        raise BaseError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(config, dict):
        raise BaseError(f"{path} must hold a JSON object.")
    return config


def _weight_files(folder: Path) -> list[Path]:
    """The shards that an index names, else every safetensors file."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            shards = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BaseError(f"{index} is not a safetensors index.") from error
        files = [folder / Path(str(shard)).name for shard in shards]
    else:
        files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise BaseError(
            f"The base {folder} has no *.safetensors weights; only safetensors are loaded, never "
            "pickle files."
        )
    return files

"""The base model's folder: what kind it is, and the shapes of its weights."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

from serve.base.architectures import ENCODERS, architectures, unserved_base
from serve.errors import UserError
from serve.tensors import TensorError, TensorFile

BaseKind: TypeAlias = Literal["causal", "encoder"]
"""How a base is used: it scores labels as text and writes, or it turns texts into vectors, which the members' heads
read. A causal model can do either, as `bundle.json` says."""
Pooling: TypeAlias = Literal["mean", "last"]

_CAUSAL = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")


class BaseError(UserError, ValueError):
    """A base that cannot be used, in words for whoever gave it."""


def kind_of(config: dict[str, Any]) -> BaseKind:
    """The kind of base that a Hugging Face `config.json` describes. Raises BaseError if it is
    neither."""
    if config.get("model_type") in ENCODERS:
        return "encoder"
    if _causal(config):
        return "causal"
    raise BaseError(
        f"The base is of an unknown kind (architectures {config.get('architectures')}, model_type "
        f"{config.get('model_type')!r}); "
        'say "kind": "causal" or "kind": "encoder" in bundle.json.'
    )


def check_served(config: dict[str, Any], kind: BaseKind) -> None:
    """Raises BaseError with the reason where no engine can serve a base with this `config.json`."""
    if (reason := unserved_base(config, kind)) is not None:
        raise BaseError(reason)


def pooling_of(config: dict[str, Any]) -> Pooling:
    """Which vector of a text heads read over a base with this `config.json`: the mean over its tokens; under a causal
    model, where no token sees those behind it, the last one's."""
    causal = _causal(config) and config.get("model_type") not in ENCODERS
    return "last" if causal else "mean"


def _causal(config: dict[str, Any]) -> bool:
    return any(name.endswith(_CAUSAL) for name in architectures(config))


@dataclass(frozen=True)
class BaseShapes:
    """The weights of a base by name, from the headers of its safetensors files."""

    weights: dict[str, tuple[int, ...]]
    config: dict[str, Any] = field(default_factory=dict)
    files: dict[str, TensorFile] = field(default_factory=dict)
    """Which file holds a weight."""

    @classmethod
    def read(cls, folder: Path) -> "BaseShapes":
        """Raises BaseError for a folder without `config.json` or without sound safetensors
        weights."""
        files: dict[str, TensorFile] = {}
        try:
            for path in _weight_files(folder):
                file = TensorFile(path)
                files |= dict.fromkeys(file.tensors, file)
        except TensorError as error:
            raise BaseError(f"The base {folder} cannot be read: {error}") from error
        weights = {name: file.tensors[name].shape for name, file in files.items()}
        return cls(weights, read_config(folder), files)

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

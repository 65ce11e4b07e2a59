"""The base model's folder: its kind, and the shapes of its weights."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

from serve.base.architectures import ENCODERS, architectures, unserved_base
from serve.base.two_towers import towers_of
from serve.errors import UserError
from serve.tensors import TensorError, TensorFile

BaseKind: TypeAlias = Literal["causal", "encoder"]
"""How a base is used. `causal`: it scores labels as text and writes. `encoder`: it turns texts into vectors, which the
members' heads read. A causal model can do either, as `bundle.json` says."""
Pooling: TypeAlias = Literal["mean", "cls", "last"]
"""Which vector of a text a head reads: the mean over its tokens, the first token's, or the last one's."""

_CAUSAL = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")


class BaseError(UserError, ValueError):
    """A base that cannot be used. The message is for the person who gave it."""


def kind_of(config: dict[str, Any]) -> BaseKind:
    """Returns the kind of base that a Hugging Face `config.json` describes. Raises BaseError if it is neither."""
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
    """Raises BaseError with the reason if no engine can serve a base with this `config.json`."""
    if (reason := unserved_base(config, kind)) is not None:
        raise BaseError(reason)


def pooling_of(config: dict[str, Any]) -> Pooling:
    """Returns which vector of a text heads read over a base with this `config.json`: the mean over its tokens, or under
    a causal model the last token's, because only that one has seen the whole text."""
    causal = _causal(config) and config.get("model_type") not in ENCODERS
    return "last" if causal else "mean"


def _causal(config: dict[str, Any]) -> bool:
    return any(name.endswith(_CAUSAL) for name in architectures(config))


@dataclass(frozen=True)
class BaseShapes:
    """The shapes of a base's weights by name, from the headers of its safetensors files."""

    weights: dict[str, tuple[int, ...]]
    config: dict[str, Any] = field(default_factory=dict)
    files: dict[str, TensorFile] = field(default_factory=dict)
    """Weight -> the file that holds it."""

    @classmethod
    def read(cls, folder: Path) -> "BaseShapes":
        """Reads a base's folder. Raises BaseError unless it has a `config.json` and sound safetensors weights."""
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
        """Width of the vectors that a head reads; None if neither config nor weights say."""
        towers = towers_of(self.config)
        if towers is not None:
            return self.weights.get(towers.projection, (None,))[0]
        hidden = self.config.get("hidden_size", self.config.get("dim"))
        return hidden if isinstance(hidden, int) else None

    @property
    def text_config(self) -> dict[str, Any]:
        """The part of the config for text; the whole config unless the model reads more than text."""
        nested = self.config.get("text_config")
        return nested if isinstance(nested, dict) else self.config


def read_config(folder: Path) -> dict[str, Any]:
    """Returns a model folder's `config.json`. Raises BaseError if it is missing or unsound."""
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
    """Returns the shards that an index names, or else every safetensors file."""
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

"""The files of an adapter's folder, and its configuration."""

from pathlib import Path
from typing import Any, Literal, TypeAlias

from serve.adapter.plain_json import read_object
from serve.digest import folder_digest
from serve.errors import UserError

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
HEAD = "head.safetensors"
ADAPTER_FILES = (CONFIG, WEIGHTS, HEAD)
"""The files that make up an adapter. Anything else in a trained folder is not part of it."""

AdapterKind: TypeAlias = Literal["lora", "alora", "prefix", "prompt"]
LORAS: tuple[AdapterKind, ...] = ("lora", "alora")
"""The kinds that change the base's weights by low-rank matrices: at every token, or from an invocation on."""
SOFT: tuple[AdapterKind, ...] = ("prefix", "prompt")
"""The kinds that put virtual tokens before the prompt."""

CONVERT = "'choir convert IN OUT' turns other forms of adapters into one that is served."
"""What to do with a folder that is refused for its form."""

_KINDS: dict[str, AdapterKind] = {
    "LORA": "lora",
    "PREFIX_TUNING": "prefix",
    "PROMPT_TUNING": "prompt",
    "P_TUNING": "prompt",
}
CONVERTED = frozenset((
    "ADALORA", "ADAMSS", "BOFT", "C3A", "DEFT", "DELORA", "FOURIERFT", "FROD", "GLORA", "GRALORA", "HIRA", "HRA", "IA3",
    "LOHA", "LOKR", "MISS", "OFT", "OSF", "PEANUT", "PSOFT", "PVERA", "RANDLORA", "ROAD", "SHIRA", "SUPERTUNING",
    "TINYLORA", "TRAINABLE_TOKENS", "UNILORA", "VBLORA", "VERA", "WAVEFT",
))  # fmt: skip
"""The other values of `peft_type` that `choir convert` makes a LoRA of: those that PEFT merges into the weights of
linear layers or of embeddings."""
_PICKLES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy", ".npz"}
_TEXTS = {".md", ".json", ".txt", ".jinja", ".gitattributes", ".yaml", ".yml"}


class AdapterError(UserError, ValueError):
    """An adapter that is not served. The message is one sentence for the person who made it."""


def adapter_kind(folder: Path) -> AdapterKind:
    """Returns the kind of the adapter in a folder. Raises AdapterError if it is not served."""
    return kind_of_config(read_config(folder))


def kind_of_config(config: dict[str, Any]) -> AdapterKind:
    """Returns the kind that PEFT's `peft_type` stands for; a LoRA with an invocation is an activated one. Raises
    AdapterError if it is not served."""
    peft_type = config.get("peft_type")
    kind = _KINDS.get(peft_type) if isinstance(peft_type, str) else None
    if kind is None:
        raise AdapterError(
            f"Its peft_type is {peft_type!r}, which is not served; {', '.join(_KINDS)} are."
            + (f" {CONVERT}" if isinstance(peft_type, str) and peft_type in CONVERTED else "")
        )
    return "alora" if kind == "lora" and config.get("alora_invocation_tokens") else kind


def belongs(file: Path) -> bool:
    """Returns whether a file may lie in an adapter's folder: one of its own files, or a text such as PEFT's model
    card."""
    return file.name in ADAPTER_FILES or bool({file.suffix, file.name} & _TEXTS)


def check_files(folder: Path) -> str:
    """Returns the folder's digest. Raises AdapterError unless the folder holds an adapter and no other files than
    texts, and DigestError if it has no digest."""
    digest = folder_digest(folder)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for path in files:
        if path.suffix in _PICKLES:
            raise AdapterError(
                f"{path.name} may hold a pickle, which runs code when it is loaded; keep safetensors files only. "
                f"{CONVERT}"
            )
        if not belongs(path):
            raise AdapterError(
                f"{path.name} is not part of an adapter; expected {', '.join(ADAPTER_FILES)} only."
            )
    for name in (CONFIG, WEIGHTS):
        if folder / name not in files:
            raise AdapterError(
                f"{name} is missing; expected a folder as PEFT's save_pretrained writes it. {CONVERT}"
            )
    return digest


def read_config(folder: Path) -> dict[str, Any]:
    """Reads `adapter_config.json`. Raises AdapterError if it is missing or unsound."""
    try:
        return read_object(folder / CONFIG)
    except OSError as error:
        raise AdapterError(f"{CONFIG} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise AdapterError(f"{CONFIG} {error}.") from error


def named(values: Any) -> str:
    """Returns several values as a list in a sentence."""
    return ", ".join(map(str, values)) if isinstance(values, (list, tuple)) else str(values)

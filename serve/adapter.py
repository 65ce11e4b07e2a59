"""The checks of one adapter folder, without torch, PEFT or vLLM: what serving refuses, and why."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from serve.base import BaseError, BaseKind, BaseShapes
from serve.digest import DigestError, folder_digest
from serve.tensors import TensorError, TensorFile

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
HEAD = "head.safetensors"
ADAPTER_FILES = (CONFIG, WEIGHTS, HEAD)
"""What an adapter consists of; anything else in a trained folder is not part of it."""

RANK_LIMITS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""The values that an engine's `max_lora_rank` may take."""
DEFAULT_RANK_LIMIT = 64

_PICKLES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy", ".npz"}
_TEXTS = {".md", ".json", ".txt", ".jinja", ".gitattributes", ".yaml", ".yml"}
_PREFIX_TYPES = {"PREFIX_TUNING", "PROMPT_TUNING", "P_TUNING", "MULTITASK_PROMPT_TUNING"}
_PLAIN_INITS = {"gaussian", "eva", "orthogonal", "mica", "lora_ga"}
_UNSERVED = {
    "use_dora": "DoRA",
    "alora_invocation_tokens": "activated LoRA (aLoRA)",
    "lora_bias": "LoRA with a bias (lora_bias)",
    "layer_replication": "layer replication",
    "use_bdlora": "block-diagonal LoRA",
    "use_qalora": "QALoRA",
    "trainable_token_indices": "trainable token embeddings",
    "target_parameters": "LoRA on bare parameters (target_parameters)",
}
_TENSOR = re.compile(
    r"^base_model\.model\.(?P<module>.+)\.lora_(?:(?P<linear>[AB])\.weight|embedding_(?P<embedding>[AB]))$"
)


class AdapterError(ValueError):
    """An adapter that is not served, in one sentence for whoever made it."""


@dataclass(frozen=True)
class HeadShape:
    """What an encoder adapter's own head looks like."""

    labels: int
    hidden: int
    normalize: bool
    """L2-normalise the pooled vector first."""
    pair: str | None
    """`towers` if the head reads a pair as u, v, |u-v|, u*v, so that its input is four times
    `hidden`."""


@dataclass(frozen=True)
class AdapterInfo:
    kind: Literal["lora"]
    rank: int
    """The largest of all modules: what an engine's limit is compared with."""
    digest: str
    target_modules: tuple[str, ...]
    """Full names of the base's modules that it changes."""
    tensors: int
    head: HeadShape | None
    base_name: str | None
    """What the adapter says it was trained on; informative only."""

    @property
    def reads_pairs(self) -> bool:
        """Whether its head reads pairs of texts."""
        return self.head is not None and self.head.pair is not None


def inspect_adapter(
    folder: Path,
    *,
    base: Path | None = None,
    max_rank: int | None = None,
    base_kind: BaseKind | None = None,
    head_rows: int | None = None,
) -> AdapterInfo:
    """Check a folder in PEFT's format, tensor by tensor, and describe it.

    `base` is the base's folder; without one, shapes are checked against each other only. `max_rank`
    is the engine's limit. `base_kind` says whether a head must be there (encoder) or must not
    (causal), and `head_rows` how many rows it has. Raises AdapterError with the reason.
    """
    try:
        digest = _check_files(folder)
        config = _read_config(folder)
        rank = _check_config(config, max_rank)
        tensors = TensorFile(folder / WEIGHTS)
        shapes = BaseShapes.read(base) if base is not None else None
        modules = _check_tensors(tensors, config, shapes)
        head = _check_head(folder / HEAD, base_kind, head_rows, shapes)
    except (TensorError, DigestError, BaseError) as error:
        raise AdapterError(str(error)) from error
    return AdapterInfo(
        kind="lora",
        rank=rank,
        digest=digest,
        target_modules=modules,
        tensors=len(tensors.tensors),
        head=head,
        base_name=config.get("base_model_name_or_path"),
    )


def belongs(file: Path) -> bool:
    """Whether a file may lie in an adapter's folder: its own files, and texts such as PEFT's model card."""
    return file.name in ADAPTER_FILES or bool({file.suffix, file.name} & _TEXTS)


def _check_files(folder: Path) -> str:
    """The folder's digest, once it holds nothing but an adapter and texts beside it."""
    digest = folder_digest(folder)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for path in files:
        if path.suffix in _PICKLES:
            raise AdapterError(
                f"{path.name} may hold a pickle, which runs code when it is loaded; keep "
                "safetensors files only "
                "(PEFT: save_pretrained(..., safe_serialization=True))."
            )
        if not belongs(path):
            raise AdapterError(
                f"{path.name} is not part of an adapter; expected {', '.join(ADAPTER_FILES)} only."
            )
    for name in (CONFIG, WEIGHTS):
        if folder / name not in files:
            raise AdapterError(
                f"{name} is missing; expected a folder as PEFT's save_pretrained writes it."
            )
    return digest


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / CONFIG).read_bytes())
    except ValueError as error:
        raise AdapterError(f"{CONFIG} is not valid JSON: {error}.") from error
    if not isinstance(config, dict):
        raise AdapterError(f"{CONFIG} must hold a JSON object.")
    return config


def _check_config(config: dict[str, Any], max_rank: int | None) -> int:
    """The adapter's largest rank, once its kind is one that is served."""
    kind = config.get("peft_type")
    if kind in _PREFIX_TYPES:
        raise AdapterError(
            f"Its peft_type is {kind}: prefix and prompt adapters are not served yet, only LORA."
        )
    if kind != "LORA":
        raise AdapterError(f"Its peft_type is {kind!r}; only LORA is served.")
    for field, feature in _UNSERVED.items():
        if config.get(field):
            raise AdapterError(
                f"{feature} is not served ({field} in {CONFIG}); train a plain LoRA."
            )
    if config.get("bias", "none") != "none":
        raise AdapterError(
            f'Trained biases are not served; train with "bias": "none", not {config["bias"]!r}.'
        )
    if saved := config.get("modules_to_save"):
        raise AdapterError(
            f"Whole modules in an adapter ({_named(saved)} in modules_to_save) are not served; "
            f"an encoder's head goes to {HEAD}."
        )
    init = config.get("init_lora_weights", True)
    if isinstance(init, str) and init.lower() not in _PLAIN_INITS:
        raise AdapterError(
            f"init_lora_weights={init!r} changes the base's weights on loading; convert it to a "
            "plain LoRA "
            "(PEFT: path_initial_model_for_weight_conversion)."
        )
    return _check_rank(config, max_rank)


def _check_rank(config: dict[str, Any], max_rank: int | None) -> int:
    patterns = config.get("rank_pattern") or {}
    if not isinstance(patterns, dict):
        raise AdapterError(
            f"rank_pattern in {CONFIG} must be an object of module patterns and ranks."
        )
    ranks = [config.get("r"), *patterns.values()]
    for rank in ranks:
        if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
            raise AdapterError(
                f"The rank in {CONFIG} must be a whole number of at least 1, not {rank!r}."
            )
    largest: int = max(rank for rank in ranks if rank is not None)
    if max_rank is not None and largest > max_rank:
        room = next((limit for limit in RANK_LIMITS if limit >= largest), None)
        advice = (
            f"start the engine with max_lora_rank {room}"
            if room
            else f"at most {RANK_LIMITS[-1]} can be served"
        )
        raise AdapterError(
            f"Its rank {largest} is above the engine's limit of {max_rank}; {advice}."
        )
    return largest


def _check_tensors(
    file: TensorFile, config: dict[str, Any], base: BaseShapes | None
) -> tuple[str, ...]:
    """The modules that the adapter changes, once each has a sound pair of matrices."""
    pairs: dict[str, dict[str, tuple[int, ...]]] = {}
    embeddings = set()
    for name, tensor in file.tensors.items():
        match = _TENSOR.match(name)
        if match is None:
            raise AdapterError(f"The tensor {name!r} is not one of a LoRA as PEFT names them.")
        module, side = match["module"], match["linear"] or match["embedding"]
        if len(tensor.shape) != 2:
            raise AdapterError(
                f"The tensor {name!r} has {len(tensor.shape)} dimensions; expected 2."
            )
        if match["embedding"]:
            embeddings.add(module)
        pairs.setdefault(module, {})[side] = tensor.shape
    if not pairs:
        raise AdapterError(f"{WEIGHTS} holds no tensors.")
    if base is not None and not any(base.find(module) for module in pairs):
        raise AdapterError(
            f"None of its {len(pairs)} modules ({next(iter(pairs))}, ...) is in the base: it was "
            "trained on another base."
        )
    for module, pair in pairs.items():
        _check_pair(module, pair, config)
        if base is not None:
            turned = module in embeddings or bool(config.get("fan_in_fan_out"))
            _check_fit(module, pair, base.find(module), turned=turned)
    for name in file.tensors:
        file.check_finite(name)
    return tuple(pairs)


def _check_pair(module: str, pair: dict[str, tuple[int, ...]], config: dict[str, Any]) -> None:
    for side in "AB":
        if side not in pair:
            raise AdapterError(
                f"The module {module!r} has no lora_{side}; a LoRA needs both matrices."
            )
    if pair["A"][0] != pair["B"][1]:
        raise AdapterError(
            f"The matrices of {module!r} do not fit each other: lora_A is {list(pair['A'])} and "
            f"lora_B {list(pair['B'])}, "
            "where the first size of A and the second of B are the rank."
        )
    expected = _rank_of(module, config)
    if pair["A"][0] != expected:
        raise AdapterError(
            f"The module {module!r} has rank {pair['A'][0]}, but {CONFIG} says {expected}."
        )


def _rank_of(module: str, config: dict[str, Any]) -> int:
    """The rank by PEFT's rule: the first pattern that matches the end of the module's name, else
    `r`."""
    rank: int = config["r"]
    for pattern, special in (config.get("rank_pattern") or {}).items():
        try:
            if re.match(rf"(.*\.)?({pattern})$", module):
                return int(special)
        except re.error as error:
            raise AdapterError(
                f"{pattern!r} in rank_pattern is not a regular expression: {error}."
            ) from error
    return rank


def _check_fit(
    module: str, pair: dict[str, tuple[int, ...]], weight: tuple[int, ...] | None, *, turned: bool
) -> None:
    """`turned`: the base stores this weight as [in, out], as embeddings and Conv1D layers do."""
    if weight is None:
        raise AdapterError(
            f"The base has no module {module!r}: the adapter was trained on another base."
        )
    if len(weight) != 2:
        raise AdapterError(
            f"The base's {module!r} is not a linear layer: its weight is {list(weight)}."
        )
    expected = weight if turned else weight[::-1]
    given = (pair["A"][1], pair["B"][0])
    if given != expected:
        raise AdapterError(
            f"The adapter does not fit the base: for {module!r} it maps {given[0]} to {given[1]} "
            "values, "
            f"the base {expected[0]} to {expected[1]}."
        )


def _check_head(
    path: Path,
    base_kind: BaseKind | None,
    rows: int | None,
    base: BaseShapes | None,
) -> HeadShape | None:
    if not path.is_file():
        if base_kind == "encoder":
            raise AdapterError(
                f"{HEAD} is missing; under an encoder each adapter has a head of its own."
            )
        return None
    if base_kind == "causal":
        raise AdapterError(
            f"{HEAD} is for encoder bases only; a causal base scores labels as text."
        )
    file = TensorFile(path)
    if set(file.tensors) != {"weight", "bias"}:
        raise AdapterError(
            f"{HEAD} must hold 'weight' and 'bias', not {_named(sorted(file.tensors))}."
        )
    weight, bias = file.tensors["weight"].shape, file.tensors["bias"].shape
    if len(weight) != 2 or bias != weight[:1]:
        raise AdapterError(
            f"{HEAD} must hold a weight of [labels, hidden] and a bias of [labels], not "
            f"{list(weight)} and {list(bias)}."
        )
    if rows is not None and weight[0] != rows:
        raise AdapterError(
            f"{HEAD} has {weight[0]} rows, but the ensemble needs {rows}: one a label, or one for "
            "the value of regression."
        )
    shape = _head_shape(weight, file.metadata)
    if base is not None and base.hidden is not None and shape.hidden != base.hidden:
        raise AdapterError(
            f"{HEAD} reads vectors of {shape.hidden} values, but the base gives {base.hidden}."
        )
    for name in file.tensors:
        file.check_finite(name)
    return shape


def _head_shape(weight: tuple[int, ...], metadata: dict[str, str]) -> HeadShape:
    unknown = sorted(set(metadata) - {"normalize", "pair", "format"})
    if unknown:
        raise AdapterError(
            f"{HEAD} has unknown metadata {_named(unknown)}; known are normalize and pair."
        )
    normalize, pair = metadata.get("normalize", "false"), metadata.get("pair")
    if normalize not in ("true", "false"):
        raise AdapterError(f"'normalize' in {HEAD} must be 'true' or 'false', not {normalize!r}.")
    if pair not in (None, "towers"):
        raise AdapterError(f"'pair' in {HEAD} must be 'towers', not {pair!r}.")
    width = 4 if pair else 1
    if weight[1] % width:
        raise AdapterError(
            f"A head with pair=towers reads 4 vectors; {weight[1]} is not a multiple of 4."
        )
    return HeadShape(weight[0], weight[1] // width, normalize == "true", pair)


def _named(values: Any) -> str:
    return ", ".join(map(str, values)) if isinstance(values, (list, tuple)) else str(values)

"""Checks one adapter's folder as a whole."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from serve.adapter.folder import (
    LORAS,
    SOFT,
    AdapterError,
    AdapterKind,
    check_files,
    kind_of_config,
    read_config,
)
from serve.adapter.head.check import HeadShape, check_head
from serve.adapter.lora.config import (
    DEFAULT_RANK_LIMIT,
    RANK_LIMITS,
    check_config,
    check_task,
)
from serve.adapter.lora.invocation import check_invocation
from serve.adapter.lora.tensors import check_tensors
from serve.adapter.origin import OriginError, check_base
from serve.adapter.soft import check_soft
from serve.adapter.wrappers import adapter_tensors
from serve.base.folder import BaseError, BaseKind, BaseShapes
from serve.digest import DigestError
from serve.tensors import TensorError


@dataclass(frozen=True)
class AdapterInfo:
    """What a checked adapter is."""

    kind: AdapterKind
    rank: int
    """The largest rank of all modules, which is compared with the engine's limit; 0 unless it is a LoRA."""
    virtual_tokens: int
    """Tokens that a prefix or prompt adapter puts before the prompt; 0 for a LoRA."""
    digest: str
    target_modules: tuple[str, ...]
    """Full names of the base's modules that a LoRA changes."""
    tensors: int
    head: HeadShape | None
    base_name: str | None
    """The base that the adapter says it was trained on; for information only."""

    @property
    def reads_pairs(self) -> bool:
        """Whether its head reads pairs of texts."""
        return self.head is not None and self.head.pair is not None


def inspect_adapter(
    folder: Path,
    *,
    base: Path | BaseShapes | None = None,
    max_rank: int | None = None,
    base_kind: BaseKind | None = None,
    head_rows: int | None = None,
) -> AdapterInfo:
    """Checks a folder in PEFT's format, tensor by tensor, and returns what it is.

    `base` is the base's folder, or its shapes. With a folder, the base's digest is compared with the one that the
    adapter recorded. Without a base, shapes are only compared with each other. `max_rank` is the engine's limit. With
    `base_kind` "encoder" there must be a head, with "causal" there must be none. `head_rows` is the number of rows that
    it must have; 0 means that there must be none. Raises AdapterError with the reason if the adapter is not served."""
    rank, count = 0, 0
    modules: tuple[str, ...] = ()
    try:
        digest = check_files(folder)
        config = read_config(folder)
        kind = kind_of_config(config)
        check_task(config)
        if kind in SOFT and base_kind == "encoder":
            raise AdapterError(
                f"It is a {kind} adapter, and an encoder base takes LoRA adapters only: its heads read the "
                "text's own tokens, all at once."
            )
        if kind in LORAS:
            rank = check_config(config, max_rank)
        tensors = adapter_tensors(folder)
        shapes = BaseShapes.read(base) if isinstance(base, Path) else base
        if kind in LORAS:
            modules = check_tensors(tensors, config, shapes, base_kind)
            check_invocation(config, tensors, shapes, base_kind)
        else:
            count = check_soft(tensors, config, kind, shapes)
        head = check_head(folder, tensors, config, base_kind, head_rows, shapes)
        check_base(folder, base if isinstance(base, Path) else None)
    except (TensorError, DigestError, BaseError, OriginError) as error:
        raise AdapterError(str(error)) from error
    return AdapterInfo(
        kind=kind,
        rank=rank,
        virtual_tokens=count,
        digest=digest,
        target_modules=modules,
        tensors=len(tensors.tensors),
        head=head,
        base_name=config.get("base_model_name_or_path"),
    )


def rank_limit(folders: Iterable[Path]) -> int:
    """Returns the `max_lora_rank` of an engine that takes all these adapters: the usual one, or the next that is
    enough. Raises AdapterError for a LoRA that no engine takes."""
    limit = DEFAULT_RANK_LIMIT
    for folder in folders:
        config = read_config(folder)
        if kind_of_config(config) in LORAS:
            rank = check_config(config, RANK_LIMITS[-1])
            limit = max(limit, next(each for each in RANK_LIMITS if each >= rank))
    return limit


def check_together(kinds: Sequence[AdapterKind]) -> None:
    """Raises AdapterError if adapters of these kinds cannot make one member."""
    soft = [kind for kind in kinds if kind in SOFT]
    if soft and "alora" in kinds:
        raise AdapterError(
            "An activated LoRA shares what the base has read, and virtual tokens are not the base's: use it without "
            f"the {soft[0]} adapter."
        )
    if len(kinds) - len(soft) > 1:
        raise AdapterError(
            "A member takes one LoRA, and beside it one prefix or prompt adapter; this one has two LoRAs."
        )
    if len(soft) > 1:
        raise AdapterError(
            f"A member takes one prefix or prompt adapter, and beside it one LoRA; this one has {' and '.join(soft)}."
        )

"""Loads the adapters of an ensemble onto one base, by PEFT. One member is active at a time."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel

from serve.adapter import invocation_of, plain_adapter
from serve.base.folder import BaseKind, BaseShapes
from serve.labels import LabelError
from serve.manifest import Member
from serve.prompting.invocation import last_occurrence


@dataclass(frozen=True)
class ActiveMember:
    """The passes of a member, which take what the base's forward takes, by name."""

    first: Callable[..., Any]
    """Makes the first pass, over prompts. If answers stand behind them, `prompts` says how many tokens of each row are
    the prompt. Raises LabelError if a prompt lacks the member's invocation."""
    later: Callable[..., Any]
    """Makes a later pass, from the cache of the first one. The cache already holds virtual tokens."""


class LoadedAdapters:
    """The loaded adapters. All LoRAs are in the base's layers, and each soft adapter wraps this base."""

    def __init__(
        self,
        model: Any,
        folders: Mapping[str, Path],
        base: Path | None = None,
        kind: BaseKind | None = None,
    ) -> None:
        """`folders` maps digests to adapters. LoRA layers are added to `model` in place. `base` is the base's folder
        and `kind` its kind; with both, adapters are read as serving reads them."""
        self._model = model
        self._loras: PeftModel | None = None
        self._soft: dict[str, PeftModel] = {}
        self._invocations = {digest: invocation_of(folder) for digest, folder in folders.items()}
        self.base = None if base is None else BaseShapes.read(base)
        """The shapes of the base's weights."""
        for digest, folder in folders.items():
            with plain_adapter(folder, self.base, kind) as plain:
                self._load(digest, plain)
        model.eval()

    def _load(self, digest: str, folder: Path) -> None:
        if PeftConfig.from_pretrained(str(folder)).is_prompt_learning:
            soft = PeftModel.from_pretrained(self._model, str(folder), adapter_name=digest)
            self._soft[digest] = soft.eval()
        elif self._loras is None:
            self._loras = PeftModel.from_pretrained(self._model, str(folder), adapter_name=digest)
        else:
            self._loras.load_adapter(str(folder), adapter_name=digest)

    @contextmanager
    def active(self, member: Member) -> Iterator[ActiveMember]:
        """Make `member` active and yield its passes."""
        digests = [ref.digest for ref in member.adapters]
        soft = next((self._soft[digest] for digest in digests if digest in self._soft), None)
        lora = next((digest for digest in digests if digest not in self._soft), None)
        disabled: Any = nullcontext()
        if self._loras is not None and lora is None:
            disabled = self._loras.disable_adapter()
        elif self._loras is not None:
            self._loras.set_adapter(lora)
        with disabled:
            if lora is not None and self._invocations[lora]:
                assert self._loras is not None, "the LoRA is loaded"
                yield _activated(self._loras, self._invocations[lora])
            else:
                yield _plain(self._model if soft is None else soft, self._model)


def _plain(model: Any, base: Any) -> ActiveMember:
    def first(*, prompts: Sequence[int] = (), **options: Any) -> Any:
        return model(**options)

    return ActiveMember(first, base)


def _activated(model: PeftModel, invocation: tuple[int, ...]) -> ActiveMember:
    """Return the passes of an activated LoRA. PEFT itself answers as the base where it finds no invocation, and in
    every pass that goes on from a cache, so it is told at how many tokens from the end the adapter acts."""

    def first(
        *, input_ids: torch.Tensor, prompts: Sequence[int] | None = None, **options: Any
    ) -> Any:
        offsets = []
        rows, length = input_ids.shape
        for row, end in zip(input_ids.tolist(), prompts or [length] * rows, strict=True):
            start = last_occurrence(row[:end], invocation)
            if start is None:
                raise LabelError(
                    f"A prompt lacks the tokens {list(invocation)}, from which the activated LoRA acts."
                )
            offsets.append(len(row) - start)
        return model(input_ids=input_ids, alora_offsets=offsets, **options)

    def later(*, input_ids: torch.Tensor, **options: Any) -> Any:
        rows, length = input_ids.shape
        return model(input_ids=input_ids, alora_offsets=[length] * rows, **options)

    return ActiveMember(first, later)

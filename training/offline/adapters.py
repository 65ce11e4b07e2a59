"""Loads the adapters of an ensemble onto one base, by PEFT. One member is active at a time."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from peft import PeftConfig, PeftModel

from serve.adapter import plain_adapter
from serve.base.folder import BaseKind, BaseShapes
from serve.manifest import Member


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
    def active(self, member: Member) -> Iterator[Any]:
        """Make `member` active and yield its model.

        The yielded model makes the first pass over a prompt. Later passes from its cache must call the base, because
        the cache already holds the virtual tokens."""
        digests = [ref.digest for ref in member.adapters]
        soft = next((self._soft[digest] for digest in digests if digest in self._soft), None)
        lora = next((digest for digest in digests if digest not in self._soft), None)
        disabled: Any = nullcontext()
        if self._loras is not None and lora is None:
            disabled = self._loras.disable_adapter()
        elif self._loras is not None:
            self._loras.set_adapter(lora)
        with disabled:
            yield self._model if soft is None else soft

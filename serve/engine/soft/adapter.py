"""What a request says about its soft adapter, to the scheduler and to the workers."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from vllm import SamplingParams

_KEY = "choir_soft"

SoftKind = Literal["prefix", "prompt"]

NO_ROOM = "prefix and prompt adapters take"
"""How a worker's refusal begins that is for want of memory: between processes it is a sentence only."""


@dataclass(frozen=True)
class SoftAdapter:
    """A loaded prefix or prompt adapter. Its tensors are found by the digest; no request ever names a path."""

    kind: SoftKind
    digest: str
    tokens: int
    """Virtual tokens, which stand before the prompt's own."""

    @property
    def given(self) -> int:
        """Virtual tokens whose keys and values are loaded, not computed."""
        return self.tokens if self.kind == "prefix" else 0

    def place(self, params: SamplingParams) -> None:
        """Write the adapter into sampling parameters."""
        params.extra_args = {**(params.extra_args or {}), _KEY: asdict(self)}

    @classmethod
    def of(cls, params: SamplingParams | None) -> "SoftAdapter | None":
        """The adapter in sampling parameters, if there is one."""
        fields: Mapping[str, Any] | None = (
            params.extra_args.get(_KEY) if params is not None and params.extra_args else None
        )
        return None if fields is None else cls(**fields)

"""What a request tells the scheduler and the workers about its soft adapter."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from vllm import SamplingParams

_KEY = "choir_soft"

SoftKind = Literal["prefix", "prompt"]

NO_ROOM = "prefix and prompt adapters take"
"""How a worker's refusal for lack of memory begins. Between processes, a refusal is only a sentence."""


@dataclass(frozen=True)
class SoftAdapter:
    """A loaded prefix or prompt adapter. Workers find its tensors by the digest; no request names a path."""

    kind: SoftKind
    digest: str
    tokens: int
    """How many virtual tokens stand before the prompt."""

    @property
    def preloaded(self) -> int:
        """How many virtual tokens have keys and values that are loaded, not computed: all of a prefix, none of a prompt
        adapter."""
        return self.tokens if self.kind == "prefix" else 0

    def write_to(self, params: SamplingParams) -> None:
        """Writes the adapter into the sampling parameters."""
        params.extra_args = {**(params.extra_args or {}), _KEY: asdict(self)}

    @classmethod
    def of(cls, params: SamplingParams | None) -> "SoftAdapter | None":
        """Returns the adapter in the sampling parameters; None if there is none."""
        fields: Mapping[str, Any] | None = (
            params.extra_args.get(_KEY) if params is not None and params.extra_args else None
        )
        return None if fields is None else cls(**fields)

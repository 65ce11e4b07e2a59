"""What a sibling request tells the scheduler and the logits processor about its group."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from vllm import SamplingParams

from serve.fusion.tokens.penalties import Penalties
from serve.fusion.tokens.sampling import Sampling
from serve.manifest import TokenMethod

PREFIX = "choir_"
"""Prefix of the keys in `SamplingParams.extra_args` that are reserved for Choir. Clients may not send them."""

_KEY = "choir_sibling"


@dataclass(frozen=True)
class TokenFusion:
    """How the members' distributions become one at every token."""

    method: TokenMethod
    weights: tuple[float, ...]
    """One for each member; they sum to 1, except for `product`."""
    plausibility: float = 0.0


@dataclass(frozen=True)
class SiblingSpec:
    """One member's place in its group."""

    group: str
    size: int
    rank: int
    """From 0. The sibling of rank 0 leads: its stream is the group's."""
    fusion: TokenFusion
    sampling: Sampling
    penalties: Penalties
    top: int | None = None
    """How many of the fused distribution's most likely tokens are reported; None: no log-probabilities."""
    report_members: bool = False
    """Whether the members' log-probabilities and their disagreement are reported too."""

    @property
    def leads(self) -> bool:
        return self.rank == 0

    @property
    def columns(self) -> int | None:
        """How many log-probabilities vLLM returns for each token, beside the chosen token's; None: none at all."""
        if self.top is None and not self.report_members:
            return None
        return (self.top or 0) + (1 + self.size if self.report_members else 0)

    def write_to(self, params: SamplingParams) -> None:
        """Writes the spec into the sampling parameters."""
        params.extra_args = {**(params.extra_args or {}), _KEY: asdict(self)}

    @classmethod
    def of(cls, params: SamplingParams | None) -> "SiblingSpec | None":
        """Returns the spec in the sampling parameters; None if the request is in no group."""
        fields: Mapping[str, Any] | None = (
            params.extra_args.get(_KEY) if params is not None and params.extra_args else None
        )
        if fields is None:
            return None
        fusion = fields["fusion"]
        return cls(
            **{
                **fields,
                "fusion": TokenFusion(**{**fusion, "weights": tuple(fusion["weights"])}),
                "sampling": Sampling(**fields["sampling"]),
                "penalties": Penalties(**fields["penalties"]),
            }
        )

"""What a sibling request says about its group, to the scheduler and to the logits processor."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from vllm import SamplingParams

from serve.fusion.tokens.penalties import Penalties
from serve.fusion.tokens.sampling import Sampling
from serve.manifest import TokenMethod

PREFIX = "choir_"
"""Keys of `SamplingParams.extra_args` that are Choir's alone; clients may not send any."""

_KEY = "choir_sibling"


@dataclass(frozen=True)
class TokenFusion:
    """How the members' distributions become one at every token."""

    method: TokenMethod
    weights: tuple[float, ...]
    """One a member; they sum to 1, except for `product`."""
    plausibility: float = 0.0


@dataclass(frozen=True)
class SiblingSpec:
    """One member's place in its group."""

    group: str
    size: int
    rank: int
    """0 leads: its stream is the group's."""
    fusion: TokenFusion
    sampling: Sampling
    penalties: Penalties
    top: int | None = None
    """How many of the fused distribution's most likely tokens are reported; None: no log-probabilities."""
    members: bool = False
    """Whether the members' log-probabilities and their disagreement are reported too."""

    @property
    def leads(self) -> bool:
        return self.rank == 0

    @property
    def columns(self) -> int | None:
        """The log-probabilities that vLLM has to return for each token beside the chosen one; None: none."""
        if self.top is None and not self.members:
            return None
        return (self.top or 0) + (1 + self.size if self.members else 0)

    def place(self, params: SamplingParams) -> None:
        """Write the spec into sampling parameters."""
        params.extra_args = {**(params.extra_args or {}), _KEY: asdict(self)}

    @classmethod
    def of(cls, params: SamplingParams | None) -> "SiblingSpec | None":
        """The spec in sampling parameters, if they belong to a group."""
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

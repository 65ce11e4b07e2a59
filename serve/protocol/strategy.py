"""How traffic moves to a new version. Swaps carry a strategy, and the database keeps it."""

from typing import Annotated, Any, Literal, Self, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, model_validator

from serve.manifest import Number

StrategyKind: TypeAlias = Literal["immediate", "shadow", "canary"]

MIN_REQUESTS = 100
MAX_ERROR_RATE = 0.01
MAX_SECONDS = 3600.0
SHARE = 0.1
LONGEST_TRIAL = 30 * 86_400
"""The largest `max_seconds` that a swap may ask for: 30 days."""


class Gates(BaseModel):
    """The limits that a candidate must keep to while it is tried out. `gates.judge` applies them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    min_requests: Annotated[StrictInt, Field(ge=1, le=1_000_000_000)] = Field(
        MIN_REQUESTS, description="Requests that the candidate must have answered."
    )
    max_error_rate: Annotated[Number, Field(ge=0, le=1)] = Field(
        MAX_ERROR_RATE, description="Largest share of them that it may fail to answer."
    )
    min_agreement: Annotated[Number, Field(ge=0, le=1)] | None = Field(
        None, description="Least share of answers that must equal the active version's."
    )
    max_latency_ratio: Annotated[Number, Field(gt=0)] | None = Field(
        None, description="Largest mean latency, as a multiple of the active version's."
    )
    max_seconds: Annotated[Number, Field(gt=0, le=LONGEST_TRIAL)] | None = Field(
        None,
        description=f"Seconds after which a candidate that has not passed is given up; by default "
        f"{MAX_SECONDS:.0f}, and none without auto_promote.",
    )


class Strategy(BaseModel):
    """`immediate` has no options; `shadow` asks the candidate a share of the requests again, after
    their answers; `canary` lets it answer a share of them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: StrategyKind = "immediate"
    share: Annotated[Number, Field(gt=0, le=1)] = Field(
        SHARE, description="Share of the ensemble's requests that the candidate gets."
    )
    gates: Gates = Gates()
    auto_promote: StrictBool = Field(
        True, description="Make the candidate active once it has passed; else wait to be told."
    )

    @model_validator(mode="after")
    def _check_immediate(self) -> Self:
        given = sorted(self.model_fields_set - {"kind"})
        if self.kind == "immediate" and given:
            raise ValueError(f"the strategy 'immediate' takes no {given[0]!r}")
        if self.kind == "canary" and self.share == 1 and self.gates.max_latency_ratio is not None:
            raise ValueError(
                "a canary of the share 1 leaves no requests to compare its latency with: give a "
                "smaller share, or no max_latency_ratio"
            )
        return self

    def as_json(self) -> dict[str, Any]:
        """Return the strategy as JSON values, for the database, with the defaults that hold today."""
        return {"kind": self.kind} if self.kind == "immediate" else self.model_dump(mode="json")

    @property
    def max_seconds(self) -> float | None:
        """Seconds after which an undecided trial is aborted; None: never."""
        given = self.gates.max_seconds
        return MAX_SECONDS if given is None and self.auto_promote else given

    @property
    def compares(self) -> bool:
        """Whether requests go to the other version too, to compare the answers. In a canary they do only if a gate
        needs the comparison."""
        return self.kind == "shadow" or (
            self.kind == "canary" and self.gates.min_agreement is not None
        )


IMMEDIATE = Strategy()

"""The bodies of requests that change what is served."""

from typing import Annotated, Any, Literal, Self, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, model_validator

from serve.manifest import Name
from serve.protocol.strategy import Strategy

Decision: TypeAlias = Literal["promote", "abort"]
"""What an administrator can decide about a rollout under way."""
ADAPTER_MISSING = "adapter_missing"
"""Code of a refusal: the folder of a new adapter is not there."""
Uri = Annotated[str, Field(min_length=1, max_length=4096)]


class SwapRequest(BaseModel):
    """The body of a swap: new adapters for members, a whole new manifest, or a version that exists."""

    model_config = ConfigDict(extra="forbid")

    members: dict[Name, Uri | list[Uri]] | None = Field(
        None, min_length=1, description="Member -> URI of its new adapter."
    )
    manifest: dict[str, Any] | None = Field(
        None,
        description="A whole new ensemble over adapters that are known by digest. Its version may "
        "be left out and does not count: the server gives the next one.",
    )
    version: Annotated[StrictInt, Field(ge=1)] | None = Field(
        None, description="A version that exists already."
    )
    expected_version: Annotated[StrictInt, Field(ge=1)] | None = Field(
        None, description="Refuse with 409 unless this version is active."
    )
    strategy: Strategy = Strategy()
    allow_stale_fusion: StrictBool = Field(
        False,
        description="Keep fitted fusion parameters although they belong to other adapters, where no validation scores "
        "are stored that they could be fitted to again.",
    )

    @model_validator(mode="after")
    def _check_form(self) -> Self:
        forms = ("members", "manifest", "version")
        if sum(getattr(self, form) is not None for form in forms) != 1:
            raise ValueError("give exactly one of 'members', 'manifest' and 'version'")
        if self.allow_stale_fusion and self.version is not None:
            raise ValueError(
                "'allow_stale_fusion' makes a new version: give 'members' or 'manifest' with it, "
                "not 'version'"
            )
        return self

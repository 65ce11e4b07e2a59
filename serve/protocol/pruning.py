"""What `POST /v1/prune` takes and shows."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt

from serve.manifest import Number

KEEP_VERSIONS = 20
KEEP_DAYS = 30.0


class PruneRequest(BaseModel):
    """The body of a prune: what is kept of what nobody uses, and whether the rest is removed."""

    model_config = ConfigDict(extra="forbid")

    keep_versions: Annotated[StrictInt, Field(ge=1, le=1000)] = Field(
        KEEP_VERSIONS,
        description="Of each ensemble: how many of the newest versions are kept, and how many steps back a rollback "
        "can still go.",
    )
    keep_days: Annotated[Number, Field(ge=0, le=36500)] = Field(
        KEEP_DAYS, description="Versions that are younger are kept too."
    )
    dry_run: StrictBool = Field(True, description="Say what would go, and remove nothing.")


class PrunedVersion(BaseModel):
    """A version that nobody can reach any more."""

    ensemble: str
    version: int
    created: str
    """ISO 8601, UTC."""


class PrunedFiles(BaseModel):
    """An adapter's folder, or a file of fitted parameters, that no version needs any more."""

    digest: str
    bytes: int


class PruneView(BaseModel):
    """What a prune has removed, or would remove."""

    dry_run: bool
    versions: list[PrunedVersion]
    adapters: list[PrunedFiles]
    parameters: list[PrunedFiles]
    """Files of fitted parameters."""
    waiting: list[str]
    """Ensembles whose versions all stay this time, because a rollout is under way."""

    @property
    def bytes(self) -> int:
        """How much room the files take on the disk."""
        return sum(each.bytes for each in (*self.adapters, *self.parameters))

"""The audit: who changed which ensemble, when, from which version to which, and with what outcome."""

from pydantic import BaseModel, ConfigDict, Field


class AuditEntry(BaseModel):
    """One entry of the audit, as the database stores it and the API shows it."""

    model_config = ConfigDict(populate_by_name=True, frozen=True)

    at: str
    """ISO 8601, UTC."""
    actor: str
    """The name of the token, and the address that the request came from; `choir` if the server acted by itself."""
    action: str
    """`import`, `swap` or `rollback`."""
    ensemble: str
    from_version: int | None = Field(alias="from")
    to_version: int | None = Field(alias="to")
    outcome: str
    """`refused` (before the change began), `committed`, `done` or `aborted`."""
    reason: str | None

"""The audit: who changed which ensemble, when, from which version to which, and with what outcome."""

from pydantic import BaseModel, ConfigDict, Field


class AuditEntry(BaseModel):
    """One entry of the audit, as the database stores it and the API shows it."""

    model_config = ConfigDict(populate_by_name=True, frozen=True)

    at: str
    """ISO 8601, UTC."""
    actor: str
    """Who asked for it: the name of the token (or `admin token`, or `no token`) and the address of the request; `choir`
    if the server acted by itself."""
    action: str
    """`swap`, `rollback`, `promote`, `abort`; `import` of a bundle's version; or `start` with a bundle whose version is
    not active."""
    ensemble: str
    from_version: int | None = Field(alias="from")
    to_version: int | None = Field(alias="to")
    outcome: str
    """`refused` (before the change began), `committed`, `done`, `aborted`, `decided` (to promote or abort) or
    `not active` (after a start)."""
    reason: str | None
    uris: dict[str, list[str]] = {}
    """Member -> the URIs of its adapters in the new version, or as asked for, for the members that change."""

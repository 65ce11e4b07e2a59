"""The database's tables. Converts their rows to records and back."""

from typing import Any

from sqlalchemy import JSON, ForeignKey, String, Text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from serve.control.origins import origins_json, origins_of
from serve.control.records import VersionRecord
from serve.control.rollout.state import Rollout, State
from serve.manifest import Ensemble
from serve.protocol.audit import AuditEntry
from serve.protocol.figures import Figures
from serve.protocol.strategy import Strategy


class Table(DeclarativeBase):
    """The base class of all tables."""


class ControlRow(Table):
    """The one row with the state that belongs to no ensemble."""

    __tablename__ = "control"
    id: Mapped[int] = mapped_column(primary_key=True)
    schema_version: Mapped[int]
    """Read by servers of before, which refuse any number but their own. Alembic's table has what counts."""
    incarnation: Mapped[int] = mapped_column("life")
    epoch: Mapped[int]


class LastWriteRow(Table):
    """The one row that names the last committed transaction."""

    __tablename__ = "last_write"
    id: Mapped[int] = mapped_column(primary_key=True)
    incarnation: Mapped[int] = mapped_column("life")
    number: Mapped[int]
    """Counts the transactions of an incarnation."""


class EnsembleRow(Table):
    __tablename__ = "ensembles"
    name: Mapped[str] = mapped_column(String(63), primary_key=True)
    active: Mapped[int]
    epoch: Mapped[int]
    previous: Mapped[list[int]] = mapped_column(JSON)


class VersionRow(Table):
    __tablename__ = "versions"
    ensemble: Mapped[str] = mapped_column(ForeignKey("ensembles.name"), primary_key=True)
    version: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    manifest: Mapped[dict[str, Any]] = mapped_column(JSON)
    source: Mapped[str] = mapped_column(Text)
    parameters: Mapped[str | None] = mapped_column(String(64))
    allow_stale_fusion: Mapped[bool]
    fitted_on: Mapped[dict[str, list[str]] | None] = mapped_column(JSON(none_as_null=True))
    left: Mapped[int | None] = mapped_column("left_at_epoch")
    origins: Mapped[dict[str, Any]] = mapped_column(JSON, server_default="{}")
    created: Mapped[str] = mapped_column(String(40))


class RolloutRow(Table):
    __tablename__ = "rollouts"
    number: Mapped[int] = mapped_column(primary_key=True)
    id: Mapped[str] = mapped_column(String(32), unique=True)
    ensemble: Mapped[str] = mapped_column(ForeignKey("ensembles.name"), index=True)
    from_version: Mapped[int]
    to_version: Mapped[int]
    strategy: Mapped[dict[str, Any]] = mapped_column(JSON)
    action: Mapped[str] = mapped_column(String(32))
    actor: Mapped[str] = mapped_column(Text)
    decision: Mapped[str | None] = mapped_column(String(32))
    decided_by: Mapped[str | None] = mapped_column(Text)
    figures: Mapped[dict[str, Any]] = mapped_column(JSON)
    state: Mapped[str] = mapped_column(String(32), index=True)
    reason: Mapped[str | None] = mapped_column(Text)
    replicas: Mapped[dict[str, str]] = mapped_column(JSON)
    uris: Mapped[dict[str, list[str]]] = mapped_column(JSON, server_default="{}")
    created: Mapped[str] = mapped_column(String(40))
    updated: Mapped[str] = mapped_column(String(40))


class AuditRow(Table):
    """Who changed what, when, from and to which version, with what outcome. Rows are only added."""

    __tablename__ = "audit"
    number: Mapped[int] = mapped_column(primary_key=True)
    at: Mapped[str] = mapped_column(String(40))
    actor: Mapped[str] = mapped_column(Text)
    action: Mapped[str] = mapped_column(String(32))
    ensemble: Mapped[str] = mapped_column(String(63), index=True)
    from_version: Mapped[int | None]
    to_version: Mapped[int | None]
    outcome: Mapped[str] = mapped_column(String(32))
    reason: Mapped[str | None] = mapped_column(Text)
    uris: Mapped[dict[str, list[str]]] = mapped_column(JSON, server_default="{}")


def version_of(row: VersionRow) -> VersionRecord:
    return VersionRecord(
        ensemble=Ensemble.model_validate(row.manifest),
        source=row.source,
        created=row.created,
        parameters=row.parameters,
        allow_stale_fusion=row.allow_stale_fusion,
        fitted_on=row.fitted_on,
        left=row.left,
        origins=origins_of(row.origins),
    )


def version_row(record: VersionRecord) -> VersionRow:
    return VersionRow(
        ensemble=record.ensemble.name,
        version=record.ensemble.version,
        manifest=record.ensemble.model_dump(mode="json", exclude_none=True),
        source=record.source,
        parameters=record.parameters,
        allow_stale_fusion=record.allow_stale_fusion,
        fitted_on=None if record.fitted_on is None else dict(record.fitted_on),
        created=record.created,
        origins=origins_json(record.origins),
    )


_ROLLOUT_FIELDS = (
    "id",
    "ensemble",
    "from_version",
    "to_version",
    "action",
    "actor",
    "decision",
    "decided_by",
    "state",
    "reason",
    "replicas",
    "uris",
    "created",
    "updated",
)


def rollout_row(rollout: Rollout) -> RolloutRow:
    return RolloutRow(
        **{name: getattr(rollout, name) for name in _ROLLOUT_FIELDS},
        strategy=rollout.strategy.as_json(),
        figures=figures_json(rollout),
    )


def rollout_of(row: RolloutRow) -> Rollout:
    values = {name: getattr(row, name) for name in _ROLLOUT_FIELDS}
    figures = {each: Figures.from_json(counts) for each, counts in row.figures.items()}
    return Rollout(
        **values | {"state": State(row.state)},
        strategy=Strategy.model_validate(row.strategy),
        figures=figures,
    )


def figures_json(rollout: Rollout) -> dict[str, Any]:
    return {gateway: figures.as_json() for gateway, figures in rollout.figures.items()}


def audit_entry(row: AuditRow) -> AuditEntry:
    return AuditEntry(
        at=row.at,
        actor=row.actor,
        action=row.action,
        ensemble=row.ensemble,
        from_version=row.from_version,
        to_version=row.to_version,
        outcome=row.outcome,
        reason=row.reason,
        uris=row.uris,
    )

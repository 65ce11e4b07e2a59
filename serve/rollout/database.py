"""The durable state: which version is active, and every change that led there.

One controller writes at a time. Each start takes the next *life*, and a controller that lives on beside a later one is
refused at its next write.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy import JSON, CursorResult, Engine, ForeignKey, String, Text, event
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from serve.manifest import Ensemble
from serve.rollout.figures import Figures
from serve.rollout.records import EnsembleRecord, VersionRecord
from serve.rollout.state import ENDED, Rollout, State
from serve.rollout.strategy import Strategy

SCHEMA_VERSION = 2


class DatabaseError(RuntimeError):
    """A state that cannot be read or written, in one sentence."""


class Conflict(DatabaseError):
    """Somebody else changed the state first."""


class Table(DeclarativeBase):
    """All tables."""


class ControlRow(Table):
    """The one row of what belongs to no ensemble."""

    __tablename__ = "control"
    id: Mapped[int] = mapped_column(primary_key=True)
    schema_version: Mapped[int]
    life: Mapped[int]
    epoch: Mapped[int]


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
    left: Mapped[int | None] = mapped_column("left_at_epoch")
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
    created: Mapped[str] = mapped_column(String(40))
    updated: Mapped[str] = mapped_column(String(40))


class AuditRow(Table):
    """Who, what, when, from, to, outcome. Rows are only ever added."""

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


def now() -> str:
    """The time, as it is written everywhere: ISO 8601, UTC, milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


class Database:
    """Every method is one transaction, blocks, and raises DatabaseError."""

    def __init__(self, engine: Engine, life: int) -> None:
        self._engine = engine
        self.life = life

    @classmethod
    def open(cls, url: str) -> "Database":
        """Open the database, create its tables if it is new, and begin a new life."""
        if not url.startswith("sqlite:"):
            scheme = url.partition(":")[0]
            raise DatabaseError(f"The database {scheme!r} is not served yet; only sqlite is.")
        try:
            engine = sa.create_engine(url)
            event.listen(engine, "connect", _tune_sqlite)
            Table.metadata.create_all(engine)
            return cls(engine, _begin_life(engine))
        except SQLAlchemyError as error:
            raise DatabaseError(f"The database cannot be opened: {_reason(error)}.") from error

    def close(self) -> None:
        self._engine.dispose()

    def ensembles(self) -> dict[str, EnsembleRecord]:
        with self._transaction() as session:
            rows = session.scalars(sa.select(EnsembleRow)).all()
            return {row.name: _ensemble(session, row) for row in rows}

    def add_ensemble(
        self, name: str, active: int, versions: Iterable[VersionRecord], actor: str
    ) -> None:
        """A new ensemble with its first versions."""
        with self._transaction() as session:
            session.add(EnsembleRow(name=name, active=active, epoch=0, previous=[]))
            session.flush()
            session.add_all(map(_version_row, versions))
            session.add(_audit(actor, "import", name, None, active, "done", None))

    def add_versions(self, records: Iterable[VersionRecord]) -> None:
        """Versions that are none of the known ones."""
        with self._transaction() as session:
            session.add_all(map(_version_row, records))

    def begin(self, rollout: Rollout, candidate: VersionRecord | None) -> None:
        """A rollout starts, with a new version or to a known one."""
        with self._transaction() as session:
            self._check_life(session)
            if candidate is not None:
                session.add(_version_row(candidate))
            session.add(_rollout_row(rollout))

    def commit(self, rollout: Rollout, record: EnsembleRecord, history: Sequence[int]) -> int:
        """Make the version of a committing rollout active: the one durable write. Returns its
        epoch.

        Raises Conflict unless `record` still is what is active."""
        with self._transaction() as session:
            self._check_life(session)
            control = _control(session)
            control.epoch += 1
            done = session.execute(
                sa.update(EnsembleRow)
                .where(
                    EnsembleRow.name == record.name,
                    EnsembleRow.active == record.active,
                    EnsembleRow.epoch == record.epoch,
                )
                .values(active=rollout.to_version, epoch=control.epoch, previous=list(history))
            )
            assert isinstance(done, CursorResult)
            if done.rowcount != 1:
                raise Conflict(
                    f"{record.name} is not at version {record.active} any more; look at its "
                    "active version and start again."
                )
            session.get_one(VersionRow, (record.name, record.active)).left = control.epoch
            _update_rollout(session, rollout)
            session.add(_audit_of(rollout, "committed"))
            return control.epoch

    def advanced(self, rollout: Rollout) -> None:
        """Write down a rollout's state."""
        with self._transaction() as session:
            _update_rollout(session, rollout)
            if rollout.state in ENDED:
                session.add(_audit_of(rollout, rollout.state))

    def decided(self, rollout: Rollout) -> None:
        """Write down what somebody has decided about a rollout."""
        assert rollout.decision is not None
        assert rollout.decided_by is not None
        with self._transaction() as session:
            self._check_life(session)
            row = _rollout_row_of(session, rollout)
            row.decision, row.decided_by = rollout.decision, rollout.decided_by
            session.add(
                _audit(
                    rollout.decided_by,
                    rollout.decision,
                    rollout.ensemble,
                    rollout.from_version,
                    rollout.to_version,
                    "decided",
                    None,
                )
            )

    def refused(self, actor: str, action: str, record: EnsembleRecord, reason: str) -> None:
        """Note a change that was asked for and never started."""
        with self._transaction() as session:
            session.add(_audit(actor, action, record.name, record.active, None, "refused", reason))

    def rollouts(self, limit: int = 200) -> list[Rollout]:
        """The latest first."""
        query = sa.select(RolloutRow).order_by(RolloutRow.number.desc()).limit(limit)
        with self._transaction() as session:
            return [_rollout(row) for row in session.scalars(query)]

    def rollout(self, id: str) -> Rollout | None:
        with self._transaction() as session:
            row = session.scalar(sa.select(RolloutRow).where(RolloutRow.id == id))
            return None if row is None else _rollout(row)

    def unfinished(self) -> list[Rollout]:
        """The oldest first."""
        query = sa.select(RolloutRow).where(RolloutRow.state.not_in(list(ENDED)))
        with self._transaction() as session:
            return [_rollout(row) for row in session.scalars(query.order_by(RolloutRow.number))]

    @contextmanager
    def _transaction(self) -> Iterator[Session]:
        try:
            with Session(self._engine) as session, session.begin():
                yield session
        except SQLAlchemyError as error:
            raise DatabaseError(f"The database failed: {_reason(error)}.") from error

    def _check_life(self, session: Session) -> None:
        if _control(session).life != self.life:
            raise Conflict(
                "Another Choir server has taken this store over; stop one of the two, or give "
                "each its own --store."
            )


def _begin_life(engine: Engine) -> int:
    with Session(engine) as session, session.begin():
        control = session.get(ControlRow, 1)
        if control is None:
            control = ControlRow(id=1, schema_version=SCHEMA_VERSION, life=0, epoch=0)
            session.add(control)
        if control.schema_version != SCHEMA_VERSION:
            raise DatabaseError(
                f"The store was written by another version of Choir (schema "
                f"{control.schema_version}, this one has {SCHEMA_VERSION}); use that version, or "
                "another --store."
            )
        control.life += 1
        return control.life


def _tune_sqlite(connection: Any, _: object) -> None:
    """Readers never wait for the writer, and what is committed survives a crash."""
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=5000"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _reason(error: SQLAlchemyError) -> str:
    """Without the statement and its values, which SQLAlchemy adds."""
    return str(getattr(error, "orig", None) or type(error).__name__).rstrip(".")


def _control(session: Session) -> ControlRow:
    return session.get_one(ControlRow, 1, with_for_update=True)


def _ensemble(session: Session, row: EnsembleRow) -> EnsembleRecord:
    query = sa.select(VersionRow).where(VersionRow.ensemble == row.name)
    versions = {each.version: _version(each) for each in session.scalars(query)}
    return EnsembleRecord(row.name, row.active, row.epoch, tuple(row.previous), versions)


def _version(row: VersionRow) -> VersionRecord:
    return VersionRecord(
        ensemble=Ensemble.model_validate(row.manifest),
        source=row.source,
        created=row.created,
        parameters=row.parameters,
        allow_stale_fusion=row.allow_stale_fusion,
        left=row.left,
    )


def _version_row(record: VersionRecord) -> VersionRow:
    return VersionRow(
        ensemble=record.ensemble.name,
        version=record.ensemble.version,
        manifest=record.ensemble.model_dump(mode="json", exclude_none=True),
        source=record.source,
        parameters=record.parameters,
        allow_stale_fusion=record.allow_stale_fusion,
        created=record.created,
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
    "created",
    "updated",
)


def _rollout_row(rollout: Rollout) -> RolloutRow:
    return RolloutRow(
        **{name: getattr(rollout, name) for name in _ROLLOUT_FIELDS},
        strategy=rollout.strategy.as_json(),
        figures=_figures_json(rollout),
    )


def _rollout(row: RolloutRow) -> Rollout:
    values = {name: getattr(row, name) for name in _ROLLOUT_FIELDS}
    figures = {each: Figures.from_json(counts) for each, counts in row.figures.items()}
    return Rollout(
        **values | {"state": State(row.state)},
        strategy=Strategy.model_validate(row.strategy),
        figures=figures,
    )


def _rollout_row_of(session: Session, rollout: Rollout) -> RolloutRow:
    return session.scalars(sa.select(RolloutRow).where(RolloutRow.id == rollout.id)).one()


def _update_rollout(session: Session, rollout: Rollout) -> None:
    row = _rollout_row_of(session, rollout)
    row.state, row.reason, row.updated = rollout.state, rollout.reason, rollout.updated
    row.replicas = rollout.replicas
    row.figures = _figures_json(rollout)


def _figures_json(rollout: Rollout) -> dict[str, Any]:
    return {gateway: figures.as_json() for gateway, figures in rollout.figures.items()}


def _audit_of(rollout: Rollout, outcome: str) -> AuditRow:
    return _audit(
        rollout.actor,
        rollout.action,
        rollout.ensemble,
        rollout.from_version,
        rollout.to_version,
        outcome,
        rollout.reason,
    )


def _audit(
    actor: str,
    action: str,
    ensemble: str,
    from_version: int | None,
    to_version: int | None,
    outcome: str,
    reason: str | None,
) -> AuditRow:
    return AuditRow(
        at=now(),
        actor=actor,
        action=action,
        ensemble=ensemble,
        from_version=from_version,
        to_version=to_version,
        outcome=outcome,
        reason=reason,
    )

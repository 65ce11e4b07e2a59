"""The durable state: which version is active, and every change that led there.

One controller writes at a time. Each start takes the next *life*, and a controller that lives on beside a later one is
refused at its next write.
"""

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from threading import Event

import sqlalchemy as sa
from sqlalchemy import CursorResult, Engine
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from serve.control.clock import now
from serve.control.database.connection import READS, DatabaseError, connect, open_alone, reason
from serve.control.database.tables import (
    AuditRow,
    ControlRow,
    EnsembleRow,
    RolloutRow,
    Table,
    VersionRow,
    audit_entry,
    figures_json,
    rollout_of,
    rollout_row,
    version_of,
    version_row,
)
from serve.control.records import EnsembleRecord, VersionRecord
from serve.control.rollout.state import ENDED, Rollout
from serve.protocol.audit import AuditEntry

logger = logging.getLogger(__name__)

__all__ = ["Conflict", "Database", "DatabaseError", "now"]

SCHEMA_VERSION = 2
RETRY_SECONDS = 1.0
"""How often a database that went away in the middle of a commit is asked what became of it."""


class Conflict(DatabaseError):
    """Somebody else changed the state first."""


class Database:
    """Every method is one transaction, blocks, and raises DatabaseError."""

    def __init__(self, engine: Engine, life: int) -> None:
        self._engine = engine
        self._reader = engine.execution_options(**{READS: True})
        self._closed = Event()
        self.life = life

    @classmethod
    def open(cls, url: str) -> "Database":
        """Open the database, create its tables if it is new, and begin a new life."""
        engine = connect(url)
        try:
            return cls(engine, _begin_life(engine))
        except SQLAlchemyError as error:
            raise DatabaseError(f"The database cannot be opened: {reason(error)}.") from error

    def close(self) -> None:
        self._closed.set()
        self._engine.dispose()

    def ensembles(self) -> dict[str, EnsembleRecord]:
        with self._reading() as session:
            rows = session.scalars(sa.select(EnsembleRow)).all()
            return {row.name: _ensemble(session, row) for row in rows}

    def add_ensemble(
        self, name: str, active: int, versions: Iterable[VersionRecord], actor: str
    ) -> None:
        """A new ensemble with its first versions."""
        with self._transaction() as session:
            session.add(EnsembleRow(name=name, active=active, epoch=0, previous=[]))
            session.flush()
            session.add_all(map(version_row, versions))
            session.add(_audit(actor, "import", name, None, active, "done", None))

    def add_versions(self, records: Iterable[VersionRecord], actor: str) -> None:
        """Versions that are none of the known ones."""
        with self._transaction() as session:
            for record in records:
                name, version = record.ensemble.name, record.ensemble.version
                session.add(version_row(record))
                session.add(_audit(actor, "import", name, None, version, "done", None))

    def begin(self, rollout: Rollout, candidate: VersionRecord | None) -> None:
        """A rollout starts, with a new version or to a known one."""
        with self._transaction() as session:
            self._check_life(session)
            if candidate is not None:
                session.add(version_row(candidate))
            session.add(rollout_row(rollout))

    def commit(self, rollout: Rollout, record: EnsembleRecord, history: Sequence[int]) -> int:
        """Make the version of a committing rollout active: the one durable write. Returns its
        epoch.

        A connection that breaks in the middle leaves open whether it was written; then this asks
        until the database answers. Raises Conflict unless `record` still is what is active."""
        try:
            return self._commit(rollout, record, history)
        except Conflict:
            raise
        except DatabaseError:
            epoch = self._epoch_if_committed(rollout)
            if epoch is None:
                raise
            return epoch

    def _commit(self, rollout: Rollout, record: EnsembleRecord, history: Sequence[int]) -> int:
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

    def _epoch_if_committed(self, rollout: Rollout) -> int | None:
        """What became of a commit whose transaction failed; None if nothing was written. Raises
        DatabaseError when the database is closed before it can say."""
        while True:
            try:
                with self._transaction() as session:
                    row = _rollout_row_of(session, rollout)
                    if row.state != rollout.state:
                        return None
                    return session.get_one(EnsembleRow, rollout.ensemble).epoch
            except DatabaseError as error:
                logger.error("Whether %s is committed is not known yet: %s", rollout.id, error)
                if self._closed.wait(RETRY_SECONDS):
                    raise

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

    def audit(self, limit: int = 200) -> list[AuditEntry]:
        """The latest first."""
        query = sa.select(AuditRow).order_by(AuditRow.number.desc()).limit(limit)
        with self._reading() as session:
            return [audit_entry(row) for row in session.scalars(query)]

    def rollouts(self, limit: int = 200) -> list[Rollout]:
        """The latest first."""
        query = sa.select(RolloutRow).order_by(RolloutRow.number.desc()).limit(limit)
        with self._reading() as session:
            return [rollout_of(row) for row in session.scalars(query)]

    def rollout(self, id: str) -> Rollout | None:
        with self._reading() as session:
            row = session.scalar(sa.select(RolloutRow).where(RolloutRow.id == id))
            return None if row is None else rollout_of(row)

    def unfinished(self) -> list[Rollout]:
        """The oldest first."""
        query = sa.select(RolloutRow).where(RolloutRow.state.not_in(list(ENDED)))
        with self._reading() as session:
            return [rollout_of(row) for row in session.scalars(query.order_by(RolloutRow.number))]

    def _reading(self) -> AbstractContextManager[Session]:
        return self._transaction(self._reader)

    @contextmanager
    def _transaction(self, engine: Engine | None = None) -> Iterator[Session]:
        try:
            with Session(engine or self._engine) as session, session.begin():
                yield session
        except SQLAlchemyError as error:
            raise DatabaseError(f"The database failed: {reason(error)}.") from error

    def _check_life(self, session: Session) -> None:
        if _control(session).life != self.life:
            raise Conflict(
                "Another Choir server has taken this store over; stop one of the two, or give "
                "each its own --store."
            )


def _begin_life(engine: Engine) -> int:
    with engine.begin() as connection, Session(connection) as session:
        open_alone(connection)
        Table.metadata.create_all(connection)
        control = session.get(ControlRow, 1, with_for_update=True)
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
        session.flush()
        return control.life


def _control(session: Session) -> ControlRow:
    return session.get_one(ControlRow, 1, with_for_update=True)


def _ensemble(session: Session, row: EnsembleRow) -> EnsembleRecord:
    query = sa.select(VersionRow).where(VersionRow.ensemble == row.name)
    versions = {each.version: version_of(each) for each in session.scalars(query)}
    return EnsembleRecord(row.name, row.active, row.epoch, tuple(row.previous), versions)


def _rollout_row_of(session: Session, rollout: Rollout) -> RolloutRow:
    return session.scalars(sa.select(RolloutRow).where(RolloutRow.id == rollout.id)).one()


def _update_rollout(session: Session, rollout: Rollout) -> None:
    row = _rollout_row_of(session, rollout)
    row.state, row.reason, row.updated = rollout.state, rollout.reason, rollout.updated
    row.replicas = rollout.replicas
    row.figures = figures_json(rollout)


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
        reason=reason and reason.replace("\0", "?"),  # no text in PostgreSQL holds one
    )

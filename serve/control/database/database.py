"""The durable state: the active versions, and all changes that led to them.

One controller writes at a time. Each start begins a new *incarnation*, and the database refuses writes of earlier ones.
Each write is also compared with the database first, so that a late write cannot undo a later one.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import sqlalchemy as sa
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from serve.control.clock import now
from serve.control.database.comparison import (
    check_advance,
    check_begin,
    check_commit,
    check_prune,
)
from serve.control.database.connection import READS, DatabaseError, connect, open_alone, reason
from serve.control.database.migration import migrate
from serve.control.database.tables import (
    AuditRow,
    ControlRow,
    EnsembleRow,
    RolloutRow,
    VersionRow,
    audit_entry,
    figures_json,
    rollout_of,
    rollout_row,
    version_of,
    version_row,
)
from serve.control.database.writer import Writer, lock_control
from serve.control.origins import all_uris
from serve.control.records import EnsembleRecord, VersionRecord
from serve.control.rollout.state import BUSY, ENDED, Rollout, State
from serve.protocol.audit import AuditEntry

FOR_OLD_SERVERS = 4
"""What a server without Alembic reads as the version of the tables, and refuses."""


class Database:
    """All methods block, run in one transaction each, and raise DatabaseError.

    A method that writes raises TakenOver once a later incarnation has begun, and Conflict if the database has changed
    meanwhile. A method that raises has written nothing."""

    def __init__(self, engine: Engine, incarnation: int) -> None:
        self._engine = engine
        self._reader = engine.execution_options(**{READS: True})
        self._writer = Writer(engine, incarnation)
        self.incarnation = incarnation

    @classmethod
    def open(cls, url: str) -> "Database":
        """Open the database, create its tables if it is new, bring those of an earlier version of Choir up to date,
        and begin a new incarnation. One that cannot be opened is left as it was."""
        engine = connect(url)
        try:
            return cls(engine, _begin_incarnation(engine))
        except SQLAlchemyError as error:
            raise DatabaseError(f"The database cannot be opened: {reason(error)}.") from error

    def close(self) -> None:
        self._writer.close()
        self._engine.dispose()

    def ensembles(self) -> dict[str, EnsembleRecord]:
        with self._reading() as session:
            rows = session.scalars(sa.select(EnsembleRow)).all()
            return {row.name: _ensemble(session, row) for row in rows}

    def add_ensemble(
        self, name: str, active: int, versions: Iterable[VersionRecord], actor: str
    ) -> None:
        """Add an ensemble with its first versions."""
        records = list(versions)

        def add(session: Session) -> None:
            session.add(EnsembleRow(name=name, active=active, epoch=0, previous=[]))
            session.flush()
            session.add_all(map(version_row, records))
            came = next(each for each in records if each.ensemble.version == active)
            uris = all_uris(came.origins)
            session.add(_audit(actor, "import", name, None, active, "done", None, uris))

        self._writer.write(add)

    def add_versions(self, records: Iterable[VersionRecord], actor: str) -> None:
        """Add versions that the database does not have."""

        def add(session: Session) -> None:
            for record in records:
                name, version = record.ensemble.name, record.ensemble.version
                session.add(version_row(record))
                uris = all_uris(record.origins)
                session.add(_audit(actor, "import", name, None, version, "done", None, uris))

        self._writer.write(add)

    def begin(self, rollout: Rollout, candidate: VersionRecord | None) -> None:
        """Add a rollout that starts, with its candidate if that is a new version."""

        def begin(session: Session) -> None:
            row = session.get_one(EnsembleRow, rollout.ensemble)
            busy = sa.select(RolloutRow.id).where(
                RolloutRow.ensemble == rollout.ensemble, RolloutRow.state.in_(list(BUSY))
            )
            check_begin(rollout, row.active, session.scalars(busy).all())
            if candidate is not None:
                session.add(version_row(candidate))
            session.add(rollout_row(rollout))

        self._writer.write(begin)

    def commit(self, rollout: Rollout, record: EnsembleRecord, history: Sequence[int]) -> int:
        """Make the candidate of a committing rollout active, in one transaction. Returns the epoch of the commit.

        Raises Conflict unless the active version is still that of `record` and the rollout's first version."""

        def commit(session: Session) -> int:
            row = session.get_one(EnsembleRow, rollout.ensemble)
            check_commit(rollout, record, row.active, row.epoch)
            epoch = lock_control(session).epoch + 1
            session.get_one(VersionRow, (row.name, row.active)).left = epoch
            row.active, row.epoch, row.previous = rollout.to_version, epoch, list(history)
            lock_control(session).epoch = epoch
            _update_rollout(session, rollout)
            session.add(_audit_of(rollout, "committed"))
            return epoch

        return self._writer.write(commit)

    def advanced(self, rollout: Rollout) -> None:
        """Write a rollout's state and figures."""

        def advance(session: Session) -> None:
            news = _update_rollout(session, rollout)
            if news and rollout.state in ENDED:
                session.add(_audit_of(rollout, rollout.state))

        self._writer.write(advance)

    def decided(self, rollout: Rollout) -> None:
        """Write the decision about a rollout."""
        decision, decided_by = rollout.decision, rollout.decided_by
        assert decision is not None
        assert decided_by is not None

        def decide(session: Session) -> None:
            row = _rollout_row_of(session, rollout)
            check_advance(State(row.state), rollout.state)
            row.decision, row.decided_by = decision, decided_by
            session.add(
                _audit(
                    decided_by,
                    decision,
                    rollout.ensemble,
                    rollout.from_version,
                    rollout.to_version,
                    "decided",
                    None,
                    rollout.uris,
                )
            )

        self._writer.write(decide)

    def prune(self, gone: Mapping[str, Collection[int]], actor: str, summary: str) -> None:
        """Remove versions (ensemble -> numbers), also from the history of rollbacks.

        Raises Conflict if one is active, or is part of a rollout that has not ended."""

        def prune(session: Session) -> None:
            session.add(_audit(actor, "prune", "", None, None, "done", summary, {}))
            for name, numbers in gone.items():
                row = session.get_one(EnsembleRow, name)
                unfinished = sa.select(RolloutRow).where(
                    RolloutRow.ensemble == name, RolloutRow.state.not_in(list(ENDED))
                )
                check_prune(name, numbers, row.active, map(rollout_of, session.scalars(unfinished)))
                row.previous = [each for each in row.previous if each not in numbers]
                for number in sorted(numbers):
                    session.delete(session.get_one(VersionRow, (name, number)))
                    session.add(_audit(actor, "prune", name, None, number, "done", None, {}))

        self._writer.write(prune)

    def refused(
        self,
        actor: str,
        action: str,
        record: EnsembleRecord,
        reason: str,
        uris: Mapping[str, list[str]],
    ) -> None:
        """Add a refused change to the audit."""
        self._note(_audit(actor, action, record.name, record.active, None, "refused", reason, uris))

    def not_active(
        self, actor: str, record: EnsembleRecord, came: VersionRecord, reason: str
    ) -> None:
        """Add a start to the audit whose bundle brought the version `came`, while another one is active."""
        to, uris = came.ensemble.version, all_uris(came.origins)
        self._note(
            _audit(actor, "start", record.name, record.active, to, "not active", reason, uris)
        )

    def _note(self, row: AuditRow) -> None:
        self._writer.write(lambda session: session.add(row))

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

    @contextmanager
    def _reading(self) -> Iterator[Session]:
        try:
            with Session(self._reader) as session, session.begin():
                yield session
        except SQLAlchemyError as error:
            raise DatabaseError(f"The database failed: {reason(error)}.") from error


def _begin_incarnation(engine: Engine) -> int:
    with engine.begin() as connection, Session(connection) as session:
        open_alone(connection)
        migrate(connection)
        control = session.get(ControlRow, 1, with_for_update=True)
        if control is None:
            control = ControlRow(id=1, schema_version=FOR_OLD_SERVERS, incarnation=0, epoch=0)
            session.add(control)
        control.incarnation += 1
        session.flush()
        return control.incarnation


def _ensemble(session: Session, row: EnsembleRow) -> EnsembleRecord:
    query = sa.select(VersionRow).where(VersionRow.ensemble == row.name)
    versions = {each.version: version_of(each) for each in session.scalars(query)}
    return EnsembleRecord(row.name, row.active, row.epoch, tuple(row.previous), versions)


def _rollout_row_of(session: Session, rollout: Rollout) -> RolloutRow:
    return session.scalars(sa.select(RolloutRow).where(RolloutRow.id == rollout.id)).one()


def _update_rollout(session: Session, rollout: Rollout) -> bool:
    """Write a rollout's state. Returns whether it has changed."""
    row = _rollout_row_of(session, rollout)
    known = State(row.state)
    check_advance(known, rollout.state)
    row.state, row.reason, row.updated = rollout.state, rollout.reason, rollout.updated
    row.replicas = rollout.replicas
    row.figures = figures_json(rollout)
    return known != rollout.state


def _audit_of(rollout: Rollout, outcome: str) -> AuditRow:
    return _audit(
        rollout.actor,
        rollout.action,
        rollout.ensemble,
        rollout.from_version,
        rollout.to_version,
        outcome,
        rollout.reason,
        rollout.uris,
    )


def _audit(
    actor: str,
    action: str,
    ensemble: str,
    from_version: int | None,
    to_version: int | None,
    outcome: str,
    reason: str | None,
    uris: Mapping[str, list[str]],
) -> AuditRow:
    return AuditRow(
        at=now(),
        actor=actor,
        action=action,
        ensemble=ensemble,
        from_version=from_version,
        to_version=to_version,
        outcome=outcome,
        reason=reason and _storable(reason),
        uris={member: [_storable(uri) for uri in several] for member, several in uris.items()},
    )


def _storable(text: str) -> str:
    """PostgreSQL stores no NUL characters."""
    return text.replace("\0", "?")

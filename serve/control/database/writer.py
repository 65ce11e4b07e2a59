"""Writes one transaction after the other. Each is fenced by the incarnation, and the outcome of each is found out."""

import logging
from collections.abc import Callable
from threading import Event, Lock
from typing import TypeVar

from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from serve.control.database.comparison import check_incarnation
from serve.control.database.connection import DatabaseError, reason
from serve.control.database.tables import ControlRow, LastWriteRow

logger = logging.getLogger(__name__)

T = TypeVar("T")

RETRY_SECONDS = 1.0
"""How often the outcome of a write is asked for, after the connection was lost during its commit."""
TURN_SECONDS = 10.0
"""How long a write waits for the previous one, whose outcome may be unknown."""


class Writer:
    """Each transaction locks the control row first, and writes its incarnation and number as the last write.

    So the outcome can be found out when the connection is lost during a commit: once the lock can be taken again, the
    transaction has ended, and the last write tells whether it was committed."""

    def __init__(self, engine: Engine, incarnation: int) -> None:
        self._engine = engine
        self._incarnation = incarnation
        self._number = 0
        self._turn = Lock()
        self._closed = Event()

    def close(self) -> None:
        """Stop asking for the outcome of a write."""
        self._closed.set()

    def write(self, work: Callable[[Session], T]) -> T:
        """Run `work` in a transaction, commit, and return its result.

        Raises what `work` raises, TakenOver, and DatabaseError. Nothing is written then, with one exception: if the
        writer is closed while the outcome of a commit is unknown, the commit may have been carried out."""
        if not self._turn.acquire(timeout=TURN_SECONDS):
            raise DatabaseError("The database failed: an earlier write has not ended yet.")
        try:
            self._number += 1
            return self._write(work)
        finally:
            self._turn.release()

    def _write(self, work: Callable[[Session], T]) -> T:
        with Session(self._engine) as session:
            try:
                self._check_incarnation(session)
                result = work(session)
                self._sign(session)
                session.flush()
            except SQLAlchemyError as error:
                raise _failed(error) from error
            try:
                session.commit()
            except SQLAlchemyError as error:
                lost = error
            else:
                return result
        if self._is_written():
            return result
        raise _failed(lost) from lost

    def _is_written(self) -> bool:
        """Whether a transaction whose commit was not confirmed is written. Raises TakenOver and DatabaseError."""
        while True:
            try:
                with Session(self._engine) as session:
                    control = lock_control(session)
                    if self._signed(session):
                        return True
                    check_incarnation(self._incarnation, control.incarnation)
                    return False
            except SQLAlchemyError as error:
                failure = _failed(error)
                logger.error("It is not known yet whether the last change is written: %s", failure)
                if self._closed.wait(RETRY_SECONDS):
                    raise failure from error

    def _check_incarnation(self, session: Session) -> None:
        check_incarnation(self._incarnation, lock_control(session).incarnation)

    def _sign(self, session: Session) -> None:
        last = session.get(LastWriteRow, 1)
        if last is None:
            last = LastWriteRow(id=1)
            session.add(last)
        last.incarnation, last.number = self._incarnation, self._number

    def _signed(self, session: Session) -> bool:
        last = session.get(LastWriteRow, 1)
        return last is not None and (last.incarnation, last.number) == (
            self._incarnation,
            self._number,
        )


def lock_control(session: Session) -> ControlRow:
    """Wait until no other transaction writes. Returns the control row, locked."""
    return session.get_one(ControlRow, 1, with_for_update=True)


def _failed(error: SQLAlchemyError) -> DatabaseError:
    return DatabaseError(f"The database failed: {reason(error)}.")

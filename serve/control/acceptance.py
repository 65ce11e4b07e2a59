"""Accepts changes: verifies each one, then starts its rollout or writes the refusal to the audit."""

import asyncio
import contextlib
import logging
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass, field

from serve.control.catalog import Catalog
from serve.control.clock import now
from serve.control.database.connection import DatabaseError
from serve.control.database.database import Database
from serve.control.driver import Driver
from serve.control.errands import Errands
from serve.control.participants import Participants
from serve.control.records import EnsembleRecord, VersionRecord
from serve.control.rollout.state import Action, Rollout
from serve.control.threads import Kind, Threads
from serve.errors import Refusal, RefusedError
from serve.protocol.requests import Decision
from serve.protocol.strategy import Strategy

logger = logging.getLogger(__name__)

PAUSE_SECONDS = 30.0
"""How long a pause waits for a moment in which no change is being verified."""


@dataclass(frozen=True)
class Change:
    """A swap or a rollback that was asked for."""

    name: str
    """The ensemble."""
    action: Action
    strategy: Strategy
    actor: str
    work: Kind
    """The kind of work that `choose` is, so that long work does not delay short work."""
    choose: Callable[[EnsembleRecord], VersionRecord]
    """Finds and verifies the candidate. Blocks, and raises RefusedError."""
    asked_uris: Mapping[str, list[str]] = field(default_factory=dict)
    """Member -> the URIs that were asked for, without secrets, for the audit of a refusal."""


class Acceptance:
    """Accepts one change of an ensemble at a time. A change goes on when its caller leaves."""

    def __init__(
        self,
        catalog: Catalog,
        driver: Driver,
        database: Database,
        participants: Participants,
        threads: Threads,
    ) -> None:
        self._catalog = catalog
        self._driver = driver
        self._database = database
        self._participants = participants
        self._threads = threads
        self._errands = Errands()
        self._reserved: set[str] = set()
        self._none_reserved = asyncio.Event()
        self._none_reserved.set()
        self._pausing = asyncio.Lock()

    async def begin(self, change: Change) -> Rollout | Refusal:
        """Verify a change and start its rollout. Returns the rollout, or the refusal."""
        return await self._errands.run(self._begin(change))

    async def make(
        self, name: str, actor: str, empty: Callable[[str], VersionRecord]
    ) -> EnsembleRecord | Refusal:
        """Make an ensemble at run time that has no adapter yet, unless there is one of this name. Returns it, or the
        refusal. `empty` gives its first version; it blocks, and raises RefusedError."""
        return await self._errands.run(self._make(name, actor, empty))

    async def decide(self, rollout: Rollout, decision: Decision, actor: str) -> None:
        """See `Driver.decide`."""
        await self._errands.run(self._driver.decide(rollout, decision, actor))

    async def stop(self) -> None:
        """Cancel the changes that have not started a rollout yet."""
        await self._errands.stop()

    @contextlib.asynccontextmanager
    async def paused(self) -> AsyncIterator[None]:
        """Hold back new changes, while none is being verified. Waits for such a moment. Raises RefusedError (409) if
        there is none for a while: a large adapter may be on its way."""
        try:
            async with asyncio.timeout(PAUSE_SECONDS):
                await self._pausing.acquire()
                while self._reserved:
                    self._pausing.release()
                    await self._none_reserved.wait()
                    await self._pausing.acquire()
        except TimeoutError as error:
            raise RefusedError(
                409,
                f"A change of {', '.join(sorted(self._reserved)) or 'an ensemble'} is being verified; wait until it "
                "has ended, and ask again.",
                "rollout_in_progress",
            ) from error
        try:
            yield
        finally:
            self._pausing.release()

    async def _begin(self, change: Change) -> Rollout | Refusal:
        try:
            async with self._pausing:
                pass  # a pause that has begun ends first
            with self._reserving(change.name) as record:
                verified = await self._verified(change, record)
                if isinstance(verified, Rollout):
                    return verified
                await self._threads.run(
                    "write",
                    self._database.refused,
                    *(change.actor, change.action, record),
                    *(verified.message, change.asked_uris),
                )
                return verified
        except (RefusedError, DatabaseError) as error:
            return refusal_of(error)

    async def _make(
        self, name: str, actor: str, empty: Callable[[str], VersionRecord]
    ) -> EnsembleRecord | Refusal:
        try:
            async with self._pausing:
                if name in self._catalog.records:
                    return self._catalog.record(name)
                if name in await self._threads.run("read", self._database.ensembles):
                    raise RefusedError(
                        409,
                        f"The store has an ensemble {name!r} that came with the bundle of an earlier start: choose "
                        "another name, or start with that bundle.",
                        "name_taken",
                        "lora_name",
                    )
                first = await self._threads.run("check", empty, name)
                number = first.ensemble.version
                await self._threads.run(
                    "write", self._database.add_ensemble, name, number, [first], actor
                )
                self._catalog.added(EnsembleRecord(name, number, 0, (), {number: first}))
                return self._catalog.record(name)
        except (RefusedError, DatabaseError) as error:
            return refusal_of(error)

    async def _verified(self, change: Change, record: EnsembleRecord) -> Rollout | Refusal:
        """Raises DatabaseError."""
        try:
            candidate = await self._threads.run(change.work, change.choose, record)
            created = now()
            rollout = Rollout(
                id=uuid.uuid4().hex[:12],
                ensemble=change.name,
                from_version=record.active,
                to_version=candidate.ensemble.version,
                strategy=change.strategy,
                action=change.action,
                actor=change.actor,
                uris=candidate.uris_changed_from(record.active_version),
                created=created,
                updated=created,
            )
            await self._driver.begin(rollout, candidate)
        except RefusedError as refused:
            return refused.refusal
        except DatabaseError:
            raise
        except Exception as error:  # a fault of the server is in the audit like any refusal
            logger.exception("A %s of %s could not be verified.", change.action, change.name)
            return Refusal(
                500,
                f"Choir met an error it does not know while it verified this ({type(error).__name__}); nothing has "
                "changed. The controller's log has its cause.",
            )
        return rollout

    @contextlib.contextmanager
    def _reserving(self, name: str) -> Iterator[EnsembleRecord]:
        """Keep out other changes of the ensemble while a candidate is verified. Raises RefusedError."""
        record = self._catalog.record(name)
        self._catalog.check_idle(name)
        if name in self._reserved:
            raise RefusedError(
                409,
                f"Another change of {name} is being verified; wait until it has ended.",
                "rollout_in_progress",
            )
        if self._driver.settled and not self._participants.engines(self._catalog.pool_of(name)):
            raise RefusedError(503, "No engine is alive to load a version; try again later.")
        self._reserved.add(name)
        self._none_reserved.clear()
        try:
            yield record
        finally:
            self._reserved.discard(name)
            if not self._reserved:
                self._none_reserved.set()


def refusal_of(error: RefusedError | DatabaseError) -> Refusal:
    """The refusal that the caller gets for an error."""
    return (
        error.refusal if isinstance(error, RefusedError) else Refusal(503, str(error), "database")
    )


def unknown_rollout(rollout_id: str) -> Refusal:
    """The 404 for an unknown rollout."""
    return Refusal(404, f"There is no rollout {rollout_id[:80]!r}.", "unknown_rollout")

"""Drives rollouts: gathers facts, decides on the next step, writes it to the database, then shows it."""

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from time import monotonic
from typing import ParamSpec, TypeVar

from serve import metrics
from serve.control.catalog import Catalog
from serve.control.changes import Changes
from serve.control.clock import now, seconds_since
from serve.control.database.comparison import Conflict, TakenOver
from serve.control.database.connection import DatabaseError
from serve.control.database.database import Database
from serve.control.participants import Participant, Participants
from serve.control.records import VersionRecord
from serve.control.rollout.news import tell_recovery, tell_step
from serve.control.rollout.plan import Assignments
from serve.control.rollout.state import (
    BUSY,
    ENDED,
    TRIALS,
    UNCOMMITTED,
    Facts,
    NextStep,
    Rollout,
    State,
    Status,
    next_step,
)
from serve.control.threads import Threads
from serve.errors import RefusedError
from serve.protocol.messages import StatusReport
from serve.protocol.requests import Decision

logger = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

RESTARTED = "the controller restarted before the commit, and nothing has changed; start it again"

RETRY_SECONDS = 1.0
"""How often a step that could not be written is tried again."""
FIGURES_SECONDS = 5.0
"""How often the figures of a trial are written. After a crash of the controller, live gateways report all figures
again. Only the figures of gateways that are gone too are lost, for at most this long."""


class Driver:
    """Runs each rollout in its own task. `state.next_step` decides on the steps."""

    def __init__(
        self,
        catalog: Catalog,
        database: Database,
        participants: Participants,
        changes: Changes,
        threads: Threads,
        settled_at: float,
        prepare_timeout_seconds: float,
    ) -> None:
        """`settled_at`: the time, on the monotonic clock, by which all leases of an earlier controller have run out."""
        self._catalog = catalog
        self._database = database
        self._participants = participants
        self._changes = changes
        self._threads = threads
        self._settled_at = settled_at
        self._prepare_timeout = prepare_timeout_seconds
        self._committed_at: dict[str, int] = {}
        self._steering: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        """Rollout -> lock, so that a decision never comes in the middle of a step."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._starting = asyncio.Lock()
        self._unwritten: dict[str, Rollout] = {}
        """Rollout -> its last step, where that is not in the database yet."""
        self._taken_over: str | None = None
        """Why this server can write nothing more, once another one has taken over."""

    @property
    def settled(self) -> bool:
        """Whether the controller has heard of all live participants."""
        return monotonic() >= self._settled_at

    async def begin(self, rollout: Rollout, candidate: VersionRecord) -> None:
        """Write a rollout to the database and start it.

        Raises RefusedError if the candidate has no room or the database has changed meanwhile, and DatabaseError. Must
        not be cancelled: memory and database would differ."""
        async with self._starting:
            self._catalog.check_room(rollout, candidate.ensemble)
            for earlier in list(self._unwritten.values()):
                if earlier.ensemble == rollout.ensemble:
                    await self._write(earlier)
                    if earlier.id in self._unwritten:
                        raise DatabaseError(
                            f"The database failed: it does not have the end of the rollout {earlier.id} yet "
                            f"({earlier.state})."
                        )
            known = self._catalog.record(rollout.ensemble).versions
            new = None if rollout.to_version in known else candidate
            try:
                await self._write_now(self._database.begin, rollout, new)
            except TakenOver:
                raise
            except Conflict as conflict:
                raise RefusedError(409, str(conflict), "version_conflict") from conflict
            self._catalog.started(rollout, candidate)
            self._changes.ring()
            self._run(rollout)

    async def decide(self, rollout: Rollout, decision: Decision, actor: str) -> None:
        """Promote or abort a rollout under way. The decision is written before it takes effect.

        Raises RefusedError (409) if it comes too late or too early, and DatabaseError. Must not be cancelled."""
        async with self._steering[rollout.id]:
            state = rollout.state
            if state not in TRIALS and not (decision == "abort" and state in UNCOMMITTED):
                raise not_open(rollout, decision)
            draft = replace(rollout, decision=decision, decided_by=actor)
            await self._write_now(self._database.decided, draft)
            rollout.decision, rollout.decided_by = decision, actor
            self._changes.ring()

    def heard(self, report: StatusReport) -> None:
        """Note the figures that a gateway reports of trials under way."""
        for rollout_id, figures in report.figures.items():
            rollout = self._catalog.running(rollout_id)
            if rollout is not None and rollout.trial:
                rollout.count(report.participant, figures)

    async def recover(self, lease_seconds: float) -> None:
        """Go on with the rollouts of an earlier controller. Raises DatabaseError.

        Trials and committed rollouts go on. Rollouts that were preparing are aborted, and so are those that do not
        start from the active version."""
        for rollout in await self._threads.run("read", self._database.rollouts):
            # A gateway that still sends requests to the candidate renewed its lease before the abort.
            late = rollout.state is State.ABORTED and rollout.strategy.kind != "immediate"
            record = self._catalog.records.get(rollout.ensemble)
            known = record is not None and rollout.to_version in record.versions
            if late and known and seconds_since(rollout.updated) < 2 * lease_seconds:
                self._catalog.aborted_lately(rollout)
        for rollout in await self._threads.run("read", self._database.unfinished):
            record = self._catalog.records.get(rollout.ensemble)
            moved = record is not None and record.active != rollout.from_version
            if rollout.state is State.PREPARING or (rollout.state in UNCOMMITTED and moved):
                rollout.advance(NextStep(State.ABORTED, RESTARTED, 503), now())
                await self._write_now(self._database.advanced, rollout)
                metrics.rollout_ended(rollout.ensemble, rollout.strategy.kind, rollout.state)
                tell_recovery(rollout)
            elif record is not None:
                self._catalog.resumed(rollout)
                tell_recovery(rollout)
                if not rollout.trial:
                    self._committed_at[rollout.id] = self._catalog.assignments.revision
                self._run(rollout)

    async def committed(self, rollout: Rollout) -> None:
        """Return once the rollout is committed on all gateways, or aborted."""
        while rollout.state in BUSY:
            await self._changes.wait(None)

    async def aborted(self, rollout: Rollout) -> None:
        """Return once a rollout with the decision to abort is aborted."""
        while rollout.state in UNCOMMITTED:
            await self._changes.wait(None)

    async def stop(self) -> None:
        """Cancel all tasks. The rollouts stay as they are in the database."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def replicas(self, rollout: Rollout) -> dict[str, str]:
        """How far each live participant (`kind/ordinal`) is with a rollout under way. Engines of other pools than the
        ensemble's have no part in it."""
        engines = self._participants.engines(self._catalog.pool_of(rollout.ensemble))
        gateways = self._participants.live("gateway")
        return {each.name: self._progress(each, rollout) for each in (*engines, *gateways)}

    def _progress(self, participant: Participant, rollout: Rollout) -> str:
        report = participant.report
        if report.kind == "gateway":
            behind = _is_behind(participant, self._committed_at.get(rollout.id))
            return "waiting" if behind else "switched"
        result = report.prepared.get(rollout.candidate)
        if result is not None and result.error is not None and result.attempt == rollout.id:
            return f"failed: {result.error}"
        held = rollout.candidate in report.holding
        tried = result is not None and result.attempt == rollout.id
        return "prepared" if held and (tried or rollout.state not in BUSY) else "preparing"

    def _run(self, rollout: Rollout) -> None:
        task = asyncio.create_task(self._drive(rollout), name=f"choir-rollout-{rollout.id}")
        self._tasks.add(task)
        task.add_done_callback(self._ran)

    def _ran(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error(
                "%s failed; after a restart the rollout goes on.", task.get_name(), exc_info=error
            )

    async def _drive(self, rollout: Rollout) -> None:
        began = monotonic() - seconds_since(rollout.updated)
        written = began
        while rollout.state not in ENDED:
            # The clock is read once: a deadline between two readings would be missed.
            deadlines = [self._settled_at, began + self._prepare_timeout]
            if rollout.trial and rollout.trial.max_seconds is not None:
                deadlines.append(began + rollout.trial.max_seconds)
            async with self._steering[rollout.id]:
                at = monotonic()
                facts = gather_facts(
                    rollout,
                    self._participants,
                    self._catalog.assignments,
                    self._committed_at.get(rollout.id),
                    pool=self._catalog.pool_of(rollout.ensemble),
                    settled=at >= deadlines[0],
                    overdue=at >= deadlines[1],
                    seconds=at - began,
                )
                step = self._next_step(rollout, facts)
                if step is not None:
                    phase = rollout.state
                    await self._take(rollout, step)
                    if rollout.state is not phase:
                        metrics.rollout_phase_ended(phase, monotonic() - began)
                        began = monotonic()
                        continue
            if step is not None:
                await asyncio.sleep(RETRY_SECONDS)
                continue
            if rollout.trial and at - written >= FIGURES_SECONDS:
                await self._write(rollout)
                written = at
                continue  # something may have changed meanwhile
            await self._changes.wait(min((d - at for d in deadlines if d > at), default=None))
        while rollout.id in self._unwritten and self._taken_over is None:
            await asyncio.sleep(RETRY_SECONDS)
            if (last := self._unwritten.get(rollout.id)) is not None:
                await self._write(last)

    def _next_step(self, rollout: Rollout, facts: Facts) -> NextStep | None:
        """The next step. Once another server has taken over, uncommitted rollouts are aborted here."""
        if self._taken_over is not None and rollout.state in UNCOMMITTED:
            return NextStep(State.ABORTED, self._taken_over, 503)
        return next_step(rollout, facts)

    async def _take(self, rollout: Rollout, step: NextStep) -> None:
        """Write a step, then show it. While the database is away, no trial begins, but a rollout can end."""
        before = rollout.state
        draft = replace(rollout, replicas=self.replicas(rollout))
        draft.advance(step, now())
        if step.state is State.COMMITTING:
            await self._commit(rollout, step, draft)
        else:
            written = await self._write(draft)
            if step.state in TRIALS and not written:
                # Otherwise, after a restart, the controller would not know that gateways use the candidate.
                self._unwritten.pop(rollout.id, None)
                return
            self._advance(rollout, step, draft)
        tell_step(rollout, before)
        if rollout.state in TRIALS:
            self._catalog.moved_on()
        if rollout.state in ENDED:
            self._catalog.ended(rollout)
            self._committed_at.pop(rollout.id, None)
            self._steering.pop(rollout.id)
            metrics.rollout_ended(rollout.ensemble, rollout.strategy.kind, rollout.state)
        self._changes.ring()

    async def _commit(self, rollout: Rollout, step: NextStep, draft: Rollout) -> None:
        """Make the candidate active. If the database refuses or fails, abort."""
        record = self._catalog.record(rollout.ensemble)
        if rollout.action == "rollback":
            history = record.history_after_rollback(rollout.to_version)
        else:
            history = record.history_after_swap()
        try:
            epoch = await self._write_now(self._database.commit, draft, record, history)
        except DatabaseError as error:
            moved = isinstance(error, Conflict) and not isinstance(error, TakenOver)
            status: Status = 409 if moved else 503
            abort = NextStep(State.ABORTED, str(error), status)
            draft = replace(rollout, replicas=draft.replicas)
            draft.advance(abort, now())
            await self._write(draft)
            self._advance(rollout, abort, draft)
            return
        self._unwritten.pop(rollout.id, None)
        self._advance(rollout, step, draft)
        self._catalog.committed(rollout, epoch, history)
        self._committed_at[rollout.id] = self._catalog.assignments.revision
        metrics.version_active(rollout.ensemble, rollout.to_version)

    @staticmethod
    def _advance(rollout: Rollout, step: NextStep, draft: Rollout) -> None:
        """Show a step that was written."""
        rollout.advance(step, draft.updated)
        rollout.replicas = draft.replicas

    async def _write(self, rollout: Rollout) -> bool:
        """Write a rollout. Returns whether that worked.

        If not, it is written later, at the latest before another rollout of the ensemble begins. After a restart before
        that, the rollout goes on from its last written state."""
        try:
            await self._write_now(self._database.advanced, rollout)
        except DatabaseError as error:
            logger.error("The rollout %s could not be written: %s", rollout.id, error)
            self._unwritten.pop(rollout.id, None)
            if not isinstance(error, Conflict):
                self._unwritten[rollout.id] = replace(rollout)
            return False
        self._unwritten.pop(rollout.id, None)
        return True

    async def _write_now(self, write: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Write, and note if another server has taken over. Raises DatabaseError."""
        try:
            return await self._threads.run("write", write, *args, **kwargs)
        except TakenOver as error:
            self._taken_over = str(error)
            self._changes.ring()
            raise


def gather_facts(
    rollout: Rollout,
    participants: Participants,
    assignments: Assignments,
    commit: int | None,
    *,
    pool: str,
    settled: bool,
    overdue: bool,
    seconds: float,
) -> Facts:
    """The facts about one rollout, from what participants have reported. `commit`: the revision that made its version
    active, if any has. `pool`: the engines that serve the ensemble."""
    engines, gateways = participants.engines(pool), participants.live("gateway")
    results = {each.name: each.report.prepared.get(rollout.candidate) for each in engines}
    held = {key for key, wanted in assignments if wanted.role == "draining"}
    held |= {key for each in engines for key in each.report.holding if key not in assignments}
    return Facts(
        settled=settled,
        overdue=overdue,
        seconds=seconds,
        engines={
            name: result if result and result.attempt == rollout.id else None
            for name, result in results.items()
        },
        gateways_behind=frozenset(each.name for each in gateways if _is_behind(each, commit)),
        still_held=frozenset(key for key in held if key.startswith(f"{rollout.ensemble}@")),
    )


def not_open(rollout: Rollout, decision: Decision) -> RefusedError:
    """The 409 for a decision that comes too late or too early."""
    state = rollout.state
    if state in UNCOMMITTED and rollout.strategy.kind != "immediate":
        rest = "it can be promoted once all engines have prepared the version"
    elif state in UNCOMMITTED:
        rest = "an immediate rollout goes through by itself"
    elif state is State.ABORTED:
        rest = "start another one with a swap"
    else:
        rest = "use rollback to return to the version before"
    return RefusedError(
        409,
        f"There is nothing to {decision}: the rollout {rollout.id} is {state}; {rest}.",
        "rollout_not_open",
    )


def _is_behind(gateway: Participant, commit: int | None) -> bool:
    return commit is None or gateway.report.seen_revision < commit

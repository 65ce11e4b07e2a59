"""Sees rollouts through: gathers facts, takes the step that follows, writes it down, then shows it."""

import asyncio
import logging
from collections import defaultdict
from dataclasses import replace
from time import monotonic

from serve import metrics
from serve.control.catalog import Catalog
from serve.control.changes import Changes
from serve.control.clock import now, seconds_since
from serve.control.database.database import Conflict, Database, DatabaseError
from serve.control.errors import Refused
from serve.control.participants import Participant, Participants
from serve.control.records import VersionRecord
from serve.control.rollout.plan import Assignments
from serve.control.rollout.state import (
    BUSY,
    ENDED,
    TRIALS,
    UNCOMMITTED,
    Decision,
    Facts,
    Rollout,
    State,
    Status,
    Step,
    next_step,
)
from serve.protocol.messages import Report

logger = logging.getLogger(__name__)

RESTARTED = "the controller restarted before the commit, and nothing has changed; start it again"

FIGURES_SECONDS = 5.0
"""How often what a trial has counted is written down: a crash forgets at most that much of gateways
that are gone, too; the others tell it again."""


class Driver:
    """Runs every rollout in a task of its own. The machine itself is `state.next_step`."""

    def __init__(
        self,
        catalog: Catalog,
        database: Database,
        participants: Participants,
        changes: Changes,
        settled_at: float,
        prepare_timeout_seconds: float,
    ) -> None:
        """`settled_at`: when every lease of an earlier controller has run out, on the monotonic
        clock."""
        self._catalog = catalog
        self._database = database
        self._participants = participants
        self._changes = changes
        self._settled_at = settled_at
        self._prepare_timeout = prepare_timeout_seconds
        self._committed_at: dict[str, int] = {}
        self._steering: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        """A decision about a rollout and its next step come one after the other."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._starting = asyncio.Lock()

    @property
    def settled(self) -> bool:
        """Whether all participants there are have been heard of."""
        return monotonic() >= self._settled_at

    async def begin(self, rollout: Rollout, candidate: VersionRecord) -> None:
        """Write a rollout down and run it. Raises Refused if the candidate does not fit, and
        DatabaseError.

        It is finished even if the caller goes away, so that memory and database stay the same."""
        await asyncio.shield(asyncio.create_task(self._begin(rollout, candidate)))

    async def _begin(self, rollout: Rollout, candidate: VersionRecord) -> None:
        async with self._starting:
            self._catalog.check_room(rollout, candidate.ensemble)
            known = self._catalog.record(rollout.ensemble).versions
            new = None if rollout.to_version in known else candidate
            await asyncio.to_thread(self._database.begin, rollout, new)
            self._catalog.started(rollout, candidate)
            self._changes.ring()
            self._run(rollout)

    async def decide(self, rollout: Rollout, decision: Decision, actor: str) -> None:
        """Promote or abort a rollout under way. Raises Refused (409) if that cannot be done any
        more, or yet, and DatabaseError.

        Written down before it is acted on, and finished even if the caller goes away."""
        await asyncio.shield(asyncio.create_task(self._decide(rollout, decision, actor)))

    async def _decide(self, rollout: Rollout, decision: Decision, actor: str) -> None:
        async with self._steering[rollout.id]:
            state = rollout.state
            if state not in TRIALS and not (decision == "abort" and state in UNCOMMITTED):
                raise not_open(rollout, decision)
            draft = replace(rollout, decision=decision, decided_by=actor)
            await asyncio.to_thread(self._database.decided, draft)
            rollout.decision, rollout.decided_by = decision, actor
            self._changes.ring()

    def heard(self, report: Report) -> None:
        """Take over what a gateway has counted of trials under way."""
        for rollout_id, figures in report.figures.items():
            rollout = self._catalog.running(rollout_id)
            if rollout is not None and rollout.trial:
                rollout.count(report.participant, figures)

    async def recover(self, lease_seconds: float) -> None:
        """Take up what an earlier controller left: what was preparing is aborted, trials go on,
        and what it had committed is seen through. Raises DatabaseError."""
        for rollout in await asyncio.to_thread(self._database.rollouts):
            # A gateway that still sends requests to it has had its lease renewed before the abort.
            late = rollout.state is State.ABORTED and rollout.strategy.kind != "immediate"
            known = rollout.ensemble in self._catalog.records
            if late and known and seconds_since(rollout.updated) < 2 * lease_seconds:
                self._catalog.aborted_lately(rollout)
        for rollout in await asyncio.to_thread(self._database.unfinished):
            if rollout.state is State.PREPARING:
                rollout.advance(Step(State.ABORTED, RESTARTED, 503), now())
                await asyncio.to_thread(self._database.advanced, rollout)
                metrics.rollout_ended(rollout.ensemble, rollout.strategy.kind, rollout.state)
            elif rollout.ensemble in self._catalog.records:
                self._catalog.resumed(rollout)
                if not rollout.trial:
                    self._committed_at[rollout.id] = self._catalog.assignments.revision
                self._run(rollout)

    async def committed(self, rollout: Rollout) -> None:
        """Returns when the rollout is committed on every gateway, or aborted."""
        while rollout.state in BUSY:
            await self._changes.wait(None)

    async def aborted(self, rollout: Rollout) -> None:
        """Returns when a rollout that somebody has aborted is."""
        while rollout.state in UNCOMMITTED:
            await self._changes.wait(None)

    async def stop(self) -> None:
        """Leave the rollouts as they are in the database."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def replicas(self, rollout: Rollout) -> dict[str, str]:
        """Each live participant, as `kind/slot` -> how far it is with a rollout under way."""
        return {each.name: self._progress(each, rollout) for each in self._participants.live()}

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
            logger.error("%s broke off; a restart takes it up.", task.get_name(), exc_info=error)

    async def _drive(self, rollout: Rollout) -> None:
        began = monotonic() - seconds_since(rollout.updated)
        written = began
        while rollout.state not in ENDED:
            # One reading of the clock: a deadline that passes between two would be slept through.
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
                    settled=at >= deadlines[0],
                    overdue=at >= deadlines[1],
                    seconds=at - began,
                )
                step = next_step(rollout, facts)
                if step is not None:
                    phase = rollout.state
                    await self._take(rollout, step)
                    metrics.rollout_phase_ended(phase, monotonic() - began)
                    began = monotonic()
                    continue
            if rollout.trial and at - written >= FIGURES_SECONDS:
                await self._write(rollout)
                written = at
                continue  # something may have changed meanwhile
            await self._changes.wait(min((d - at for d in deadlines if d > at), default=None))

    async def _take(self, rollout: Rollout, step: Step) -> None:
        """Durable first, visible then."""
        draft = replace(rollout, replicas=self.replicas(rollout))
        draft.advance(step, now())
        if step.state is State.COMMITTING:
            await self._commit(rollout, step, draft)
        else:
            await self._write(draft)
            self._advance(rollout, step, draft)
        if rollout.state in TRIALS:
            self._catalog.moved_on()
        if rollout.state in ENDED:
            self._catalog.ended(rollout)
            self._committed_at.pop(rollout.id, None)
            self._steering.pop(rollout.id)
            metrics.rollout_ended(rollout.ensemble, rollout.strategy.kind, rollout.state)
        self._changes.ring()

    async def _commit(self, rollout: Rollout, step: Step, draft: Rollout) -> None:
        """Make the candidate active, or abort if the database does not let it."""
        record = self._catalog.record(rollout.ensemble)
        if rollout.action == "rollback":
            history = record.history_after_rollback(rollout.to_version)
        else:
            history = record.history_after_swap()
        try:
            epoch = await asyncio.to_thread(self._database.commit, draft, record, history)
        except DatabaseError as error:
            status: Status = 409 if isinstance(error, Conflict) else 503
            abort = Step(State.ABORTED, str(error), status)
            draft = replace(rollout, replicas=draft.replicas)
            draft.advance(abort, now())
            await self._write(draft)
            self._advance(rollout, abort, draft)
            return
        self._advance(rollout, step, draft)
        self._catalog.committed(rollout, epoch, history)
        self._committed_at[rollout.id] = self._catalog.assignments.revision
        metrics.version_active(rollout.ensemble, rollout.to_version)

    @staticmethod
    def _advance(rollout: Rollout, step: Step, draft: Rollout) -> None:
        """Show what was written down."""
        rollout.advance(step, draft.updated)
        rollout.replicas = draft.replicas

    async def _write(self, rollout: Rollout) -> None:
        """What is not written down is found again at the next start, so a failure here only costs
        the history its last line."""
        try:
            await asyncio.to_thread(self._database.advanced, rollout)
        except DatabaseError as error:
            logger.error("The rollout %s could not be written down: %s", rollout.id, error)


def gather_facts(
    rollout: Rollout,
    participants: Participants,
    assignments: Assignments,
    commit: int | None,
    *,
    settled: bool,
    overdue: bool,
    seconds: float,
) -> Facts:
    """What participants have reported, as far as it concerns one rollout. `commit` is the revision
    that made its version active, once there is one."""
    engines, gateways = (participants.live(kind) for kind in ("engine", "gateway"))
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


def not_open(rollout: Rollout, decision: Decision) -> Refused:
    """The 409 for a decision that comes too late, or too early."""
    state = rollout.state
    if state in UNCOMMITTED and rollout.strategy.kind != "immediate":
        rest = "it can be promoted once all engines have prepared the version"
    elif state in UNCOMMITTED:
        rest = "an immediate rollout goes through by itself"
    elif state is State.ABORTED:
        rest = "start another one with a swap"
    else:
        rest = "use rollback to return to the version before"
    return Refused(
        409,
        f"There is nothing to {decision}: the rollout {rollout.id} is {state}; {rest}.",
        "rollout_not_open",
    )


def _is_behind(gateway: Participant, commit: int | None) -> bool:
    return commit is None or gateway.report.seen_revision < commit

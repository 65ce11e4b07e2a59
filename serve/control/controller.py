"""The control plane: decides which versions engines hold and which one is active, and carries out each change.

It calls no other process: engines and gateways report and get the desired state as the answer. Each decision is written
to the database before others see it. Requests to models do not pass through here.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from time import monotonic
from typing import TypeVar

from serve import metrics
from serve.control.acceptance import Acceptance, Change, refusal_of, unknown_rollout
from serve.control.admission.difference import NotServed
from serve.control.catalog import Catalog, version_of
from serve.control.changes import Changes
from serve.control.clock import unix_seconds
from serve.control.database.connection import DatabaseError
from serve.control.driver import Driver, not_open
from serve.control.origins import asked_uris
from serve.control.participants import Participants
from serve.control.pruning.pruner import Pruner
from serve.control.records import EnsembleRecord
from serve.control.report import report_page
from serve.control.rollout.state import Rollout, State
from serve.control.startup import ControllerOptions, Opened
from serve.control.threads import Threads
from serve.control.views import ensemble_view, rollout_view, version_view
from serve.errors import Refusal, RefusedError
from serve.logs.events import tell
from serve.protocol.audit import AuditEntry
from serve.protocol.messages import Desired, ParticipantKind, StatusReport
from serve.protocol.pruning import PruneRequest, PruneView
from serve.protocol.requests import Decision, SwapRequest
from serve.protocol.strategy import IMMEDIATE
from serve.protocol.views import EnsembleView, RolloutView
from serve.watching import replicas
from serve.watching.board import Family, MetricsBoard, families

logger = logging.getLogger(__name__)

T = TypeVar("T")

LISTED_VERSIONS = 20
"""How many of the newest versions of each ensemble the list of ensembles shows."""
SHOWN_VERSIONS = 500
"""How many of the newest versions the view of one ensemble shows."""
TRIAL_SECONDS = 1.0
"""Gateways report the figures of a trial at least this often, in seconds."""


class Controller:
    """One per server. All durable state is in the database, so that a new controller can take over."""

    def __init__(self, options: ControllerOptions, opened: Opened, threads: Threads) -> None:
        """See `open`."""
        self._database = opened.database
        self._admission = opened.admission
        self._capacity = opened.capacity
        self._imported = opened.imported
        self._pools = opened.pools
        self._threads = threads
        self._lease = options.lease_seconds
        self._board = MetricsBoard()
        self._changes = Changes()
        self._ready_engines: Mapping[str, int] | None = None
        self._housekeeping: asyncio.Task[None] | None = None
        self._participants = Participants(options.lease_seconds, options.expected)
        incarnation = self._database.incarnation
        self._catalog = Catalog(
            opened.imported.records, opened.store, incarnation, options.keep_warm, self._capacity
        )
        # By then, every participant with a lease of an earlier controller has reported again or lost the lease.
        self._settled_at = monotonic() + (self._lease if incarnation > 1 else 0)
        self._stopping = False
        self._driver = Driver(
            self._catalog,
            self._database,
            self._participants,
            self._changes,
            self._threads,
            self._settled_at,
            options.prepare_timeout_seconds,
        )
        self._acceptance = Acceptance(
            self._catalog, self._driver, self._database, self._participants, self._threads
        )
        self._pruner = Pruner(
            self._catalog,
            self._database,
            opened.store,
            self._participants,
            self._acceptance,
            self._threads,
            self._pools.bundles,
        )

    @classmethod
    async def open(cls, options: ControllerOptions) -> "Controller":
        """A controller over the store and the database, with the bundles imported.

        Raises StartError, BundleError, StoreError and DatabaseError, each with one sentence."""
        threads = Threads()
        try:
            opened = await threads.run("check", Opened.of, options)
        except BaseException:
            threads.close()
            raise
        return cls(options, opened, threads)

    async def start(self) -> None:
        """Go on with the rollouts of an earlier controller, and watch leases. Raises DatabaseError."""
        await self._driver.recover(self._lease)
        for name, version in self._catalog.active().items():
            metrics.version_active(name, version)
        self._housekeeping = asyncio.create_task(self._keep_house())

    async def shut_down(self) -> None:
        """Have every gateway finish what it has begun and leave, and then end all work. Returns when that is done."""
        self._stopping = True
        self._catalog.assignments.touch()
        while self._participants.live("gateway"):
            self._changes.ring()
            await self._changes.wait(None)
        await self.stop()

    async def stop(self) -> None:
        """End all work. The next controller goes on with it from the database."""
        if self._housekeeping is not None:
            self._housekeeping.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._housekeeping
        await self._pruner.stop()
        await self._acceptance.stop()
        await self._driver.stop()
        await asyncio.to_thread(self._database.close)
        self._threads.close()

    async def sync(self, report: StatusReport) -> Desired:
        """Take a report and return the desired state: at once if there is news, else with the next news or after a
        while. See `lease.ControllerLink`."""
        participant = self._participants.hear(report, monotonic())
        if participant is None:
            self._board.retire(report.participant)
        self._driver.heard(report)
        self._look_around(monotonic())
        self._changes.ring()
        until = monotonic() + self._round_seconds(report)
        while (
            participant is not None
            and not report.urgent
            and report.seen_revision == self._catalog.assignments.revision
            and (left := until - monotonic()) > 0
        ):
            await self._changes.wait(left)
        return Desired(
            revision=self._catalog.assignments.revision,
            lease_seconds=self._lease,
            versions=self._catalog.assigned(report.pool if report.kind == "engine" else None),
            ready_engines=self._ready_engines,
            stopping=self._stopping,
        )

    def _round_seconds(self, report: StatusReport) -> float:
        """How long an answer without news waits, in seconds. The figures of a trial are needed more often than leases
        must be renewed."""
        return min(self._lease / 3, TRIAL_SECONDS) if report.figures else self._lease / 3

    async def swap(
        self, name: str, request: SwapRequest, actor: str, wait: bool = False
    ) -> RolloutView | Refusal:
        """Start a rollout to the version that the request describes. With `wait`, return once it is committed on all
        gateways, or refused."""
        change = Change(
            name,
            "swap",
            request.strategy,
            actor,
            "check" if request.members is None else "fetch",
            lambda record: self._admission.candidate(record, request, actor),
            asked_uris(request),
        )
        return await self._roll_out(change, wait)

    async def make(self, name: str, actor: str) -> EnsembleView | Refusal:
        """Make an ensemble at run time: texts by one member, which cannot be asked until a swap brings its adapter.
        Returns it, or the one that there is."""
        made = await self._acceptance.make(name, actor, self._admission.empty)
        return made if isinstance(made, Refusal) else self._ensemble_view(made, SHOWN_VERSIONS)

    async def rollback(
        self, name: str, to: int | None, actor: str, wait: bool = False
    ) -> RolloutView | Refusal:
        """Start a rollout back to the version that was active before, or to the earlier version `to`."""
        change = Change(
            name,
            "rollback",
            IMMEDIATE,
            actor,
            "check",
            lambda record: self._admission.earlier(record, to),
        )
        return await self._roll_out(change, wait)

    async def promote(
        self, rollout_id: str, actor: str, wait: bool = False
    ) -> RolloutView | Refusal:
        """Commit a candidate that is tried out, without regard to its gates. With `wait`, return once it is committed
        on all gateways."""
        return await self._decide(rollout_id, "promote", actor, wait)

    async def abort(self, rollout_id: str, actor: str) -> RolloutView | Refusal:
        """Abort a rollout that is not committed. Returns once it is aborted."""
        return await self._decide(rollout_id, "abort", actor, wait=True)

    async def prune(self, request: PruneRequest, actor: str) -> PruneView | Refusal:
        """Remove versions and files that nobody can reach any more, or only say which."""
        return await self._pruner.prune(request, actor)

    async def rollouts(self) -> list[RolloutView] | Refusal:
        """The latest first."""
        found = await self._read(self._database.rollouts)
        return found if isinstance(found, Refusal) else [self._view(each) for each in found]

    async def audit(self) -> list[AuditEntry] | Refusal:
        """The latest first."""
        return await self._read(self._database.audit)

    async def rollout(self, rollout_id: str) -> RolloutView | Refusal:
        found = await self._read(lambda: self._database.rollout(rollout_id))
        if found is None:
            return unknown_rollout(rollout_id)
        return found if isinstance(found, Refusal) else self._view(found)

    async def ensembles(
        self, limit: int | None = None, after: str | None = None
    ) -> list[EnsembleView]:
        """Ensembles by name, each with its newest versions and those in use: all of them, or the first `limit` whose
        names sort behind `after`."""
        records = self._catalog.shown
        names = sorted(name for name in records if after is None or name > after)
        return [self._ensemble_view(records[name], LISTED_VERSIONS) for name in names[:limit]]

    async def ensemble(self, name: str) -> EnsembleView | Refusal:
        try:
            return self._ensemble_view(self._catalog.shown_record(name), SHOWN_VERSIONS)
        except RefusedError as refused:
            return refused.refusal

    async def report(self, name: str) -> bytes | Refusal:
        """The page of the report in the bundle that the ensemble came from, as HTML."""
        try:
            record = self._catalog.record(name)
        except RefusedError as refused:
            return refused.refusal
        return await self._threads.run("read", report_page, record, self._pools.bundles)

    async def push_metrics(self, kind: str, participant: str, snapshot: tuple[Family, ...]) -> None:
        """Take the metrics of one process. Those of a process without a lease are dropped: it has no ordinal. No count
        is lost, because each push contains all counts."""
        known = self._participants.get(participant)
        if known is not None:
            self._board.push(kind, known.ordinal, participant, snapshot)

    async def metrics(self) -> bytes:
        """The metrics of all processes as Prometheus text."""
        for name, record in self._catalog.records.items():
            if record.empty:
                metrics.nothing_active(name)
            else:
                metrics.fusion_stale(name, record.active_version.allow_stale_fusion)
        kinds: tuple[ParticipantKind, ...] = ("engine", "gateway")
        replicas.leases_held({kind: len(self._participants.live(kind)) for kind in kinds})
        replicas.rollouts_under_way(
            [
                (each.ensemble, each.strategy.kind, each.state, unix_seconds(each.updated))
                for each in self._catalog.rollouts
            ]
        )
        incarnation = f"controller-{self._database.incarnation}"
        self._board.push("controller", 0, incarnation, families())
        return self._board.render()

    async def _roll_out(self, change: Change, wait: bool) -> RolloutView | Refusal:
        begun = await self._acceptance.begin(change)
        if isinstance(begun, Refusal):
            return begun
        return await self._committed(begun) if wait else self._view(begun)

    async def _committed(self, rollout: Rollout) -> RolloutView | Refusal:
        """Wait until all gateways have committed the rollout. Returns it, or the reason why it was aborted."""
        await self._driver.committed(rollout)
        if rollout.state is State.ABORTED:
            return Refusal(rollout.status, f"Nothing has changed: {rollout.reason}", "aborted")
        return self._view(rollout)

    async def _decide(
        self, rollout_id: str, decision: Decision, actor: str, wait: bool
    ) -> RolloutView | Refusal:
        try:
            rollout = self._catalog.running(rollout_id)
            if rollout is None:
                found = await self._threads.run("read", self._database.rollout, rollout_id)
                if found is None:
                    return unknown_rollout(rollout_id)
                raise not_open(found, decision)
            await self._acceptance.decide(rollout, decision, actor)
        except (RefusedError, DatabaseError) as error:
            return refusal_of(error)
        if decision == "abort":
            await self._driver.aborted(rollout)
            return self._view(rollout)
        return await self._committed(rollout) if wait else self._view(rollout)

    async def _read(self, read: Callable[[], T]) -> T | Refusal:
        """What `read` returns, or a refusal if the database cannot be read."""
        try:
            return await self._threads.run("read", read)
        except DatabaseError as error:
            return refusal_of(error)

    async def _keep_house(self) -> None:
        """End leases when they run out, since no report announces that."""
        while True:
            # The clock is read once: a lease that runs out between two readings would be missed.
            at = monotonic()
            self._look_around(at)
            times = (self._settled_at, self._participants.next_expiry())
            ahead = [time - at for time in times if time is not None and time > at]
            await self._changes.wait(min(ahead, default=None))

    def _look_around(self, at: float) -> None:
        """Update the assignments after reports and leases that ran out, and wake waiting tasks if they changed."""
        assignments = self._catalog.assignments
        before = assignments.revision
        alive = {each.report.participant: each for each in self._participants.live()}
        for participant in self._participants.expire(at):
            self._board.retire(participant)
            replicas.lease_lost(alive[participant].report.kind)
            tell(logger, "lost", f"{alive[participant].name} is silent: its lease has run out.")
        if at >= self._settled_at:
            seen = self._participants.seen_by_gateways()
            assignments.seen_by_gateways(before if seen is None else seen)
        ready = {pool: self._participants.ready_engines(pool) for pool in self._pools.all}
        known = at >= self._settled_at or all(ready.values())
        if known and ready != self._ready_engines:
            self._ready_engines = ready
            assignments.touch()
        if assignments.revision != before:
            self._changes.ring()

    def _view(self, rollout: Rollout) -> RolloutView:
        """The view of a rollout. While it runs, with the progress of each participant now."""
        running = self._catalog.running(rollout.id)
        if running is None:
            return rollout_view(rollout)
        return rollout_view(replace(running, replicas=self._driver.replicas(running)))

    def _ensemble_view(self, record: EnsembleRecord, newest: int) -> EnsembleView:
        """The view of an ensemble with all versions in use and the `newest` others, since there is no limit to
        versions."""
        engines = self._participants.live("engine")
        held = {key for engine in engines for key in engine.report.holding}
        held |= {key for key, _ in self._catalog.assignments}
        in_use = [version_of(key) for key in held if key.startswith(f"{record.name}@")]
        versions = [
            version_view(
                version,
                self._catalog.assignments.role(version.ensemble.id),
                [each.name for each in engines if version.ensemble.id in each.report.holding],
            )
            for version in record.newest(newest, in_use)
        ]
        rollout = self._catalog.rollout_of(record.name)
        return ensemble_view(
            record,
            versions,
            self._view(rollout) if rollout else None,
            self._imported.differences.get(record.name, []),
            self._not_served(record),
            pinned=not self._capacity.on_demand(record.name),
            pool=self._catalog.pool_of(record.name),
        )

    def _not_served(self, record: EnsembleRecord) -> NotServed | None:
        """What this start has brought and is not served; None once somebody has changed what is active."""
        found = self._imported.not_served.get(record.name)
        return found if found is not None and found.active == record.active else None

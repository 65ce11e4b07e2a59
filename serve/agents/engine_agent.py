"""Brings an engine to the desired state: loads the versions that are desired, and releases the others.

Versions on demand are loaded when requests wait for them (`demands.py`). If there is no room, others leave first
(`eviction.py`)."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Mapping

from serve.agents.demands import Demands
from serve.agents.eviction import Contents, Evictor, Leaving
from serve.agents.file_check import check_files
from serve.agents.golden_check import wrong_golden
from serve.agents.lease import ControllerLink, Lease, new_participant
from serve.engine.interface import Engine, NoRoomError, PrepareError, Version
from serve.errors import Refusal
from serve.logs.events import tell_phase
from serve.protocol.capacity import Capacity
from serve.protocol.messages import AssignedVersion, Desired, PrepareResult, Role, StatusReport
from serve.watching import replicas

logger = logging.getLogger(__name__)

_ORDER: dict[Role, int] = {"active": 0, "candidate": 1, "warm": 2, "draining": 3}
"""The order in which versions are loaded."""
ROOM_SECONDS = 0.05
"""How long a version waits for room before the agent looks again: a turn may have ended."""


class EngineAgent:
    """Loads and releases the versions of one engine, one at a time."""

    def __init__(
        self, engine: Engine, link: ControllerLink, retry_seconds: float = 0.1, pool: str = ""
    ) -> None:
        self.participant = new_participant("engine")
        self._pool = pool
        self._engine = engine
        self._lease = Lease(link, self._report, self._apply, retry_seconds)
        self._held: dict[str, Version] = {}
        self._leaving: dict[str, Leaving] = {}
        self._releases: set[asyncio.Task[None]] = set()
        self._results: dict[str, PrepareResult] = {}
        self._demands = Demands()
        self._evictor = Evictor()
        self._wake = asyncio.Event()
        self._alarm: asyncio.TimerHandle | None = None
        self._started: asyncio.Future[None] | None = None
        self._worker: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Return once everything that must be loaded at the newest revision is loaded.

        Raises PrepareError if an active version cannot be loaded."""
        self._started = asyncio.get_running_loop().create_future()
        self._lease.start()
        self._worker = asyncio.create_task(self._work(), name="choir-engine-agent")
        try:
            await self._started
        except BaseException:
            await self.stop()
            raise
        self._lease.report_now()

    async def stop(self) -> None:
        """End the lease. The engine keeps what it holds, and requests that wait are let go."""
        if self._worker is not None:
            self._worker.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._worker
        if self._alarm is not None:
            self._alarm.cancel()
        self._demands.forget(())
        sequence = self._lease.next_sequence()
        await self._lease.stop(
            StatusReport(self.participant, "engine", sequence, 0, ready=False, leaving=True)
        )

    @property
    def ready(self) -> bool:
        """Whether start() has returned: the engine has loaded everything that is active."""
        started = self._started
        return started is not None and started.done() and started.exception() is None

    @contextlib.asynccontextmanager
    async def using(self, key: str) -> AsyncIterator[Refusal | None]:
        """Surround every request for the version `key`, and load the version first if it is on demand.

        Yields why it cannot be loaded. Yields None if it is loaded, and also if it is not desired: then the engine
        itself answers that it lacks the version."""
        self._evictor.request_began(key)
        try:
            yield None if key in self._held else await self._wait_until_loaded(key)
        finally:
            if self._evictor.request_ended(key):
                self._demands.settle(key)  # nobody waits for it any more
                if self._demands.waiting():
                    self._wake.set()

    async def _wait_until_loaded(self, key: str) -> Refusal | None:
        desired = self._lease.desired
        versions = desired.versions if desired is not None else ()
        if not any(each.waited_for and each.version.key == key for each in versions):
            return None
        answer = self._demands.add(key)
        self._wake.set()
        return await asyncio.shield(answer)

    def _report(self, sequence: int, seen: int) -> StatusReport:
        return StatusReport(
            self.participant,
            "engine",
            sequence,
            seen,
            ready=self.ready,
            pool=self._pool,
            prepared=dict(self._results),
            holding=(*self._held, *self._leaving),
        )

    def _apply(self, desired: Desired) -> None:
        self._wake.set()

    async def _work(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            desired = self._lease.desired
            assert desired is not None, "the lease wakes the worker with a desired state"
            try:
                await self._reconcile(desired)
                failure = self._failure_to_start(desired)
            except Exception as error:  # the next round tries again; the loop must go on
                logger.exception("The engine could not be brought to the desired state.")
                failure = f"{type(error).__name__}: {error}"
            self._tell_start(desired, failure)

    def _tell_start(self, desired: Desired, failure: str | None) -> None:
        if self._started is None or self._started.done():
            return
        if failure is not None:
            self._started.set_exception(PrepareError(failure))
        elif desired is self._lease.desired and self._holds_trials(desired):
            self._started.set_result(None)

    def _tell_phase(self, desired: Desired) -> None:
        """Tell how many of the adapters that must be loaded are, while the engine starts."""
        if not self.ready:
            must = [each.version for each in desired.versions if not each.lazy]
            total = {digest for version in must for digest in version.adapters}
            done = {digest for version in self._held.values() for digest in version.adapters}
            tell_phase(logger, "Proving adapter", len(done & total), len(total))

    def _show_active(self, desired: Desired) -> None:
        """Show of each active version whether it is held. One on demand need not be."""
        replicas.active_versions_held(
            {
                each.version.ensemble.name: each.lazy or each.version.key in self._held
                for each in desired.versions
                if each.role == "active"
            }
        )

    def _holds_trials(self, desired: Desired) -> bool:
        """Return whether the engine holds every candidate on trial: gateways may send it requests at once.

        If it cannot load one, it reports that, and the controller aborts the rollout before this engine is ready."""
        return all(each.version.key in self._held for each in desired.versions if each.trial)

    def _failure_to_start(self, desired: Desired) -> str | None:
        """Return why an active version is not loaded; None if all are."""
        for assigned in desired.versions:
            key = assigned.version.key
            if assigned.role == "active" and not assigned.lazy and key not in self._held:
                result = self._results.get(key)
                return f"{key} cannot be loaded: {result.error if result else 'there is no room'}"
        return None

    async def _reconcile(self, desired: Desired) -> None:
        wanted = {assigned.version.key: assigned for assigned in desired.versions}
        for key in [key for key in self._held if key not in wanted]:
            self._release(key)
        for key in [key for key in self._results if key not in wanted]:
            del self._results[key]
        self._demands.forget(wanted)
        self._evictor.forget(wanted)
        waiting = False
        for assigned in sorted(wanted.values(), key=lambda each: _ORDER[each.role]):
            if self._settled(assigned):
                continue
            self._tell_phase(desired)
            if self._failure_of(assigned) is not None:
                self._wake_in(self._demands.retry_in(assigned.version.key))
            elif not await self._load_if_room(assigned, wanted):
                waiting |= assigned.role == "active" or assigned.attempt is not None
        self._show_active(desired)
        # A version that requests ask for must not take the room that one of these waits for.
        await self._serve_demands(desired, wanted, load=not waiting)

    async def _serve_demands(
        self, desired: Desired, wanted: Mapping[str, AssignedVersion], *, load: bool
    ) -> None:
        """Load the versions that requests wait for, in their order, until there is no room or the desired state has
        changed."""
        for key, demand in self._demands.waiting():
            if desired is not self._lease.desired:
                return
            assigned = wanted.get(key)
            if assigned is None or not assigned.waited_for or key in self._held:
                self._demands.settle(key)
            elif (
                not assigned.lazy
            ):  # a rollout needs it, and has it loaded as soon as there is room
                failure = self._failure_of(assigned)
                if failure is not None or self._settled(assigned):
                    self._demands.settle(key, failure)
            elif load and key not in self._leaving and not demand.answer.done():
                load = await self._load_if_room(assigned, wanted, waiting_since=demand.since)

    def _settled(self, assigned: AssignedVersion) -> bool:
        """Return whether nothing has to be done for a version before a request comes.

        A version that a rollout asks for is tried once; any other one is tried in every round until it is loaded."""
        key = assigned.version.key
        if assigned.lazy:
            return True
        if assigned.attempt is None:
            return key in self._held
        result = self._results.get(key)
        return result is not None and result.attempt == assigned.attempt

    def _failure_of(self, assigned: AssignedVersion) -> Refusal | None:
        """Return why the version is not tried again yet. A rollout's version is always tried at once, so that the
        rollout hears of it."""
        return None if assigned.attempt else self._demands.failure(assigned.version.key)

    async def _load_if_room(
        self,
        assigned: AssignedVersion,
        wanted: Mapping[str, AssignedVersion],
        *,
        waiting_since: float | None = None,
    ) -> bool:
        """Load a version, or send others off to make room for it. Return False if it has to wait."""
        key = assigned.version.key
        decision = self._evictor.decide(assigned.version, self._contents(wanted), waiting_since)
        for other in decision.evict:
            logger.info("%s makes room for %s.", other, key)
            self._release(other)
        if not decision.load:
            if key not in self._leaving:  # the end of its own release wakes the worker
                self._wake_in(ROOM_SECONDS)
            return False
        try:
            result = await self._load(assigned)
        except NoRoomError as error:
            if self._evictor.refused(assigned.version, self._contents(wanted)):
                self._wake.set()
                return False
            result = PrepareResult(assigned.attempt, error=str(error))
        if key in self._held:
            self._evictor.loaded(key)
            self._demands.loaded(key)
            if assigned.lazy:
                logger.info("%s is loaded, because requests asked for it.", key)
        if result.error is not None:
            replicas.load_failed(assigned.version.ensemble.name)
        if result.error is not None and assigned.attempt is None:
            self._demands.failed(key, result.error)
            logger.error("%s %s: %s", assigned.role, key, result.error)
        self._results[key] = result
        self._lease.report_now()
        return True

    def _contents(self, wanted: Mapping[str, AssignedVersion]) -> Contents:
        state = self._engine.state()
        return Contents(
            {key: wanted[key] for key in self._held},
            dict(self._leaving),
            Capacity(state.adapter_slots, state.host_adapters),
        )

    async def _load(self, assigned: AssignedVersion) -> PrepareResult:
        """Load a version, probe it and ask its golden inputs. Return the result, also of a failure.

        Raises NoRoomError if the engine has no room for it."""
        version = assigned.version
        try:
            if version.key not in self._held:
                await asyncio.to_thread(check_files, version)
            probes = await self._engine.prepare(version)
            # No request may use it before it has answered its golden inputs.
            wrong = await wrong_golden(self._engine, version)
            result = PrepareResult(assigned.attempt, probes, wrong)
            if wrong is not None and assigned.attempt is None:
                # No rollout aborts it, so the agent has to release it.
                self._held.pop(version.key, None)
                await self._engine.release(version.key)
            else:
                self._held[version.key] = version
            return result
        except NoRoomError:
            raise
        except PrepareError as error:
            self._held.pop(version.key, None)
            return PrepareResult(assigned.attempt, error=str(error))
        except Exception as error:  # any exception of the engine is a failure of this version
            logger.exception("%s could not be prepared.", version.key)
            return PrepareResult(
                assigned.attempt, error=f"the engine failed on it ({type(error).__name__})"
            )

    def _release(self, key: str) -> None:
        """Begin to release a version. Requests that run on it come to their end first, however long that takes."""
        version = self._held.pop(key)
        self._leaving[key] = Leaving(version, self._evictor.busy(key))
        task = asyncio.create_task(self._finish_release(key), name=f"choir-release-{key}")
        self._releases.add(task)
        task.add_done_callback(self._releases.discard)

    async def _finish_release(self, key: str) -> None:
        try:
            await self._engine.release(key)
        except Exception:  # it is out of use either way, and the engine knows what it still holds
            logger.exception("%s could not be released.", key)
        finally:
            del self._leaving[key]
            self._evictor.released()
            self._wake.set()
            self._lease.report_now()

    def _wake_in(self, seconds: float) -> None:
        """Wake the worker after `seconds` at the latest."""
        loop = asyncio.get_running_loop()
        if self._alarm is not None and not self._alarm.cancelled():
            if loop.time() < self._alarm.when() <= loop.time() + seconds:
                return
            self._alarm.cancel()
        self._alarm = loop.call_later(seconds, self._wake.set)

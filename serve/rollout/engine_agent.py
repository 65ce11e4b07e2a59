"""Keeps an engine as the controller wants it: loads what is desired, releases what is not, and lets versions that are
loaded on demand share the room that is left."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

from serve.digest import DigestError, folder_digest
from serve.engine.interface import Engine, PrepareError, Refusal, Version
from serve.rollout.golden import wrong_golden
from serve.rollout.lease import ControllerLink, Lease, new_participant
from serve.rollout.messages import AssignedVersion, Desired, PrepareResult, Report, Role
from serve.rollout.residents import Residents, fits
from serve.rollout.slots import loras_of

logger = logging.getLogger(__name__)

_ORDER: dict[Role, int] = {"active": 0, "candidate": 1, "warm": 2, "draining": 3}
"""What is loaded first."""
ROOM_SECONDS = 0.1
"""How often it is looked again whether somebody's turn has ended while a version waits for room."""


class EngineAgent:
    """Reconciles one engine with the desired state, a version at a time."""

    def __init__(self, engine: Engine, link: ControllerLink, retry_seconds: float = 0.1) -> None:
        self.participant = new_participant("engine")
        self._engine = engine
        self._lease = Lease(link, self._report, self._apply, retry_seconds)
        self._held: dict[str, Version] = {}
        self._results: dict[str, PrepareResult] = {}
        self._releasing: dict[str, tuple[Version, asyncio.Task[None]]] = {}
        self._residents = Residents()
        self._wake = asyncio.Event()
        self._loaded: asyncio.Future[None] | None = None
        self._worker: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Returns once everything that is desired at the newest revision is loaded.

        Raises PrepareError if an active version cannot be loaded."""
        self._loaded = asyncio.get_running_loop().create_future()
        self._lease.start()
        self._worker = asyncio.create_task(self._work(), name="choir-engine-agent")
        try:
            await self._loaded
        except BaseException:
            await self.stop()
            raise
        self._lease.report_now()

    async def stop(self) -> None:
        """End the lease. The engine keeps what it holds."""
        if self._worker is not None:
            self._worker.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._worker
        self._residents.forget(())
        sequence = self._lease.next_sequence()
        await self._lease.stop(
            Report(self.participant, "engine", sequence, 0, ready=False, leaving=True)
        )

    @property
    def ready(self) -> bool:
        """Whether start() is through: the engine has held all that was active."""
        return self._loaded is not None and self._loaded.done() and self._loaded.exception() is None

    @contextlib.asynccontextmanager
    async def using(self, key: str) -> AsyncIterator[Refusal | None]:
        """Around every request for the version `key`: loads it first if that is done on demand. Yields why it cannot be
        loaded; the engine itself says what it lacks otherwise."""
        self._residents.enter(key)
        try:
            yield None if key in self._held else await self._demanded(key)
        finally:
            if self._residents.leave(key):
                self._wake.set()

    async def _demanded(self, key: str) -> Refusal | None:
        desired = self._lease.desired
        versions = desired.versions if desired is not None else ()
        if not any(each.waited_for and each.version.key == key for each in versions):
            return None
        answer = self._residents.demand(key)
        self._wake.set()
        return await asyncio.shield(answer)

    def _report(self, sequence: int, seen: int) -> Report:
        return Report(
            self.participant,
            "engine",
            sequence,
            seen,
            ready=self.ready,
            prepared=dict(self._results),
            holding=(*self._held, *self._releasing),
            state=self._engine.state(),
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
                failure = self._failure(desired)
            except Exception as error:  # the round is tried again; the loop must go on
                logger.exception("The engine could not be brought to the desired state.")
                failure = f"{type(error).__name__}: {error}"
            self._tell_start(desired, failure)

    def _tell_start(self, desired: Desired, failure: str | None) -> None:
        if self._loaded is None or self._loaded.done():
            return
        if failure is not None:
            self._loaded.set_exception(PrepareError(failure))
        elif desired is self._lease.desired and self._holds_trials(desired):
            self._loaded.set_result(None)

    def _holds_trials(self, desired: Desired) -> bool:
        """Whether gateways may send requests here already. Where a candidate that they try out
        cannot be loaded, that is reported, and the rollout aborted before this engine is ready."""
        return all(each.version.key in self._held for each in desired.versions if each.trial)

    def _failure(self, desired: Desired) -> str | None:
        """Why an active version is not loaded, if one is not."""
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
        self._residents.forget(wanted)
        for assigned in sorted(wanted.values(), key=lambda each: _ORDER[each.role]):
            if not self._settled(assigned) and self._has_room(assigned.version, wanted):
                await self._prepare(assigned)
        await self._serve_demands(desired, wanted)

    async def _serve_demands(self, desired: Desired, wanted: Mapping[str, AssignedVersion]) -> None:
        """Load what requests wait for, in their order, until there is no room or something else is desired."""
        while desired is self._lease.desired and (first := self._residents.next()) is not None:
            key, demand = first
            assigned = wanted.get(key)
            if assigned is None or not assigned.waited_for or key in self._held:
                self._residents.answered(key, None)
                continue
            if not assigned.lazy:  # its rollout has it loaded, as soon as there is room
                if not self._settled(assigned):
                    return
                self._residents.answered(key, None)
                continue
            if not self._has_room(assigned.version, wanted, busy_too=demand.overdue):
                return
            logger.info("%s is loaded, because it was asked for.", key)
            await self._prepare(assigned)
            error = self._results[key].error
            refusal = Refusal(503, f"{key} cannot be loaded: {error}", "load_failed")
            self._residents.answered(key, refusal if error is not None else None)

    def _settled(self, assigned: AssignedVersion) -> bool:
        """Whether nothing is left to do before somebody asks. A version that a rollout asks for is tried
        once for it; any other one is tried again in every round until it is loaded."""
        key = assigned.version.key
        if assigned.lazy:
            return True
        if assigned.attempt is None:
            return key in self._held
        result = self._results.get(key)
        return result is not None and result.attempt == assigned.attempt

    async def _prepare(self, assigned: AssignedVersion) -> None:
        version = assigned.version
        try:
            if version.key not in self._held:
                await asyncio.to_thread(_verify, version)
            probes = await self._engine.prepare(version)
            # Until it has proved itself, nobody who waits for it may ask it.
            wrong = await wrong_golden(self._engine, version)
            result = PrepareResult(assigned.attempt, probes, wrong)
            if wrong is not None and assigned.attempt is None:
                # No rollout will abort it, so it must not pass for loaded.
                self._held.pop(version.key, None)
                await self._engine.release(version.key)
            else:
                self._held[version.key] = version
        except PrepareError as error:
            self._held.pop(version.key, None)
            result = PrepareResult(assigned.attempt, error=str(error))
        except Exception as error:  # whatever an engine raises is that candidate's failure
            logger.exception("%s could not be prepared.", version.key)
            result = PrepareResult(
                assigned.attempt, error=f"the engine failed on it ({type(error).__name__})"
            )
        if result.error is not None and assigned.attempt is None:
            logger.error("%s %s: %s", assigned.role, version.key, result.error)
        self._results[version.key] = result
        self._lease.report_now()

    def _has_room(
        self,
        version: Version,
        wanted: Mapping[str, AssignedVersion],
        *,
        busy_too: bool = True,
    ) -> bool:
        """False if the version has to wait for one that is on its way out: itself being released
        still, or another one whose room it needs. Long answers can keep adapters loaded for as
        long as they run. When that is over, the worker is woken again.

        Versions that are loaded on demand are sent on their way out here; with `busy_too` also such as
        are asked all the time, which then wait for their next turn."""
        if version.key in self._releasing:
            return False
        state = self._engine.state()
        capacity = state.host_adapters or state.adapter_slots
        needed = loras_of(version)
        held = {key: loras_of(each) for key, each in self._held.items()}
        releasing = {key: loras_of(each) for key, (each, _) in self._releasing.items()}
        if fits(needed, held | releasing, (), capacity):
            return True
        lazy = [key for key in held if wanted[key].lazy]
        for key in self._residents.victims(needed, held, lazy, capacity, busy_too=busy_too):
            logger.info("%s makes room for %s.", key, version.key)
            self._release(key)
        draining = any(wanted[key].role == "draining" for key in self._held)
        if fits(needed, held, lazy, capacity) and lazy:
            asyncio.get_running_loop().call_later(ROOM_SECONDS, self._wake.set)
            return False
        return not (self._releasing or draining)

    def _release(self, key: str) -> None:
        version = self._held.pop(key)
        task = asyncio.create_task(self._released(key), name=f"choir-release-{key}")
        self._releasing[key] = (version, task)

    async def _released(self, key: str) -> None:
        try:
            await self._engine.release(key)
        except Exception:  # it is out of use either way; its slot is the engine's to report
            logger.exception("%s could not be released.", key)
        finally:
            del self._releasing[key]
            self._wake.set()
            self._lease.report_now()


def _verify(version: Version) -> None:
    """Compare the files on this machine with their digests. Raises PrepareError."""
    for digest, folder in version.adapters.items():
        try:
            found = folder_digest(Path(folder))
        except (DigestError, OSError) as error:
            raise PrepareError(f"the adapter {digest} cannot be read: {error}") from error
        if found != digest:
            raise PrepareError(
                f"the adapter {digest} has changed on disk, its digest is {found} now; remove "
                f"{folder} and start again"
            )

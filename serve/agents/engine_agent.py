"""Keeps an engine as the controller wants it: loads what is desired, releases what is not, and lets versions that are
loaded on demand share the room that is left."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from serve.agents.golden_check import wrong_golden
from serve.agents.lease import ControllerLink, Lease, new_participant
from serve.agents.residents import RETRY_SECONDS, Residents, fits, victims
from serve.digest import DigestError, file_digest, folder_digest
from serve.engine.interface import Engine, NoRoomError, PrepareError, Version
from serve.protocol.messages import AssignedVersion, Desired, PrepareResult, Role, StatusReport
from serve.protocol.slots import has_soft, loras_of
from serve.refusal import Refusal

logger = logging.getLogger(__name__)

_ORDER: dict[Role, int] = {"active": 0, "candidate": 1, "warm": 2, "draining": 3}
"""What is loaded first."""
ROOM_SECONDS = 0.05
"""How often it is looked again whether somebody's turn has ended while a version waits for room."""


@dataclass(frozen=True)
class _Leaving:
    """A version on its way out of the engine."""

    version: Version
    busy: bool
    """Whether requests ran on it when it was sent off: nobody knows how long they take."""
    task: asyncio.Task[None]


class EngineAgent:
    """Reconciles one engine with the desired state, a version at a time."""

    def __init__(self, engine: Engine, link: ControllerLink, retry_seconds: float = 0.1) -> None:
        self.participant = new_participant("engine")
        self._engine = engine
        self._lease = Lease(link, self._report, self._apply, retry_seconds)
        self._held: dict[str, Version] = {}
        self._results: dict[str, PrepareResult] = {}
        self._releasing: dict[str, _Leaving] = {}
        self._refused: set[str] = set()
        """Versions for which the engine itself has had no room since a version was last released."""
        self._residents = Residents()
        self._wake = asyncio.Event()
        self._alarm: asyncio.TimerHandle | None = None
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
        if self._alarm is not None:
            self._alarm.cancel()
        self._residents.forget(())
        sequence = self._lease.next_sequence()
        await self._lease.stop(
            StatusReport(self.participant, "engine", sequence, 0, ready=False, leaving=True)
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

    def _report(self, sequence: int, seen: int) -> StatusReport:
        return StatusReport(
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
        waiting = False
        for assigned in sorted(wanted.values(), key=lambda each: _ORDER[each.role]):
            if self._settled(assigned):
                continue
            if self._failure_of(assigned) is not None:
                self._wake_in(RETRY_SECONDS)
            elif not await self._prepared(assigned, wanted):
                waiting |= assigned.role == "active" or assigned.attempt is not None
        # Whoever is asked for by requests would take the room again as soon as there is some.
        await self._serve_demands(desired, wanted, load=not waiting)

    async def _serve_demands(
        self, desired: Desired, wanted: Mapping[str, AssignedVersion], *, load: bool
    ) -> None:
        """Load what requests wait for, in their order, until there is no room or something else is desired."""
        for key, demand in self._residents.demands():
            if desired is not self._lease.desired:
                return
            assigned = wanted.get(key)
            if assigned is None or not assigned.waited_for or key in self._held:
                self._residents.answered(key, None)
            elif not assigned.lazy:  # its rollout has it loaded, as soon as there is room
                failure = self._failure_of(assigned)
                if failure is not None or self._settled(assigned):
                    self._residents.answered(key, failure)
            elif load and key not in self._releasing and not demand.answer.done():
                load = await self._prepared(assigned, wanted, busy_too=demand.overdue)

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

    def _failure_of(self, assigned: AssignedVersion) -> Refusal | None:
        """Why the version is not tried again yet; a rollout's is tried at once, and the rollout hears of it."""
        return None if assigned.attempt else self._residents.failure(assigned.version.key)

    async def _prepared(
        self,
        assigned: AssignedVersion,
        wanted: Mapping[str, AssignedVersion],
        *,
        busy_too: bool = True,
    ) -> bool:
        """Load a version if there is room for it; False if it has to wait for some."""
        key = assigned.version.key
        if not self._has_room(assigned.version, wanted, busy_too=busy_too):
            return False
        try:
            result = await self._prepare(assigned)
        except NoRoomError as error:
            if self._room_may_come(assigned.version, wanted):
                self._refused.add(key)
                self._wake.set()
                return False
            result = PrepareResult(assigned.attempt, error=str(error))
        if key in self._held:
            self._residents.loaded(key)
            if assigned.lazy:
                logger.info("%s is loaded, because it was asked for.", key)
        if result.error is not None and assigned.attempt is None:
            self._residents.failed(key, result.error)
            logger.error("%s %s: %s", assigned.role, key, result.error)
        self._results[key] = result
        self._lease.report_now()
        return True

    async def _prepare(self, assigned: AssignedVersion) -> PrepareResult:
        """Load a version, and have it prove itself. Raises NoRoomError."""
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
            return result
        except NoRoomError:
            raise
        except PrepareError as error:
            self._held.pop(version.key, None)
            return PrepareResult(assigned.attempt, error=str(error))
        except Exception as error:  # whatever an engine raises is that candidate's failure
            logger.exception("%s could not be prepared.", version.key)
            return PrepareResult(
                assigned.attempt, error=f"the engine failed on it ({type(error).__name__})"
            )

    def _has_room(
        self, version: Version, wanted: Mapping[str, AssignedVersion], *, busy_too: bool
    ) -> bool:
        """False if the version has to wait for one that is on its way out: itself being released
        still, or another one whose room it needs. Long answers can keep adapters loaded for as
        long as they run. When that is over, the worker is woken again.

        Versions that are loaded on demand are sent on their way out here; with `busy_too` also such as
        are asked all the time, which then wait for their next turn."""
        if version.key in self._releasing:
            return False
        make_room = self._make_any_room if version.key in self._refused else self._make_lora_room
        if make_room(version, wanted, busy_too=busy_too):
            return True
        self._wake_in(ROOM_SECONDS)
        return False

    def _make_lora_room(
        self, version: Version, wanted: Mapping[str, AssignedVersion], *, busy_too: bool
    ) -> bool:
        """Whether the version's LoRAs fit, or nobody could make room for them."""
        state = self._engine.state()
        capacity = state.host_adapters or state.adapter_slots
        needed = loras_of(version)
        held = {key: loras_of(each) for key, each in self._held.items()}
        leaving = {key: loras_of(each.version) for key, each in self._releasing.items()}
        if fits(needed, held | leaving, (), capacity):
            return True
        # What left without requests is gone in a moment. The rest is not waited for where an idle version can leave.
        staying = held | {key: leaving[key] for key, each in self._releasing.items() if each.busy}
        if fits(needed, staying, (), capacity):
            return False
        lazy = [key for key in held if wanted[key].lazy]
        idle = self._residents.evictable(lazy, busy_too=False)
        found = victims(needed, staying, idle, capacity)
        if not found:
            tired = self._residents.evictable(lazy, busy_too=busy_too)
            found = victims(needed, held, tired, capacity)
        self._send_off(found, version)
        draining = any(wanted[key].role == "draining" for key in self._held)
        return not (self._releasing or draining or fits(needed, held, lazy, capacity))

    def _make_any_room(
        self, version: Version, wanted: Mapping[str, AssignedVersion], *, busy_too: bool
    ) -> bool:
        """Whether nobody could make room for a version that the engine refused. Nobody knows how much it needs, so one
        version after another leaves until the engine takes it."""
        if not self._room_may_come(version, wanted):
            return True
        if all(each.busy for each in self._releasing.values()):
            lazy = [key for key in self._alike(version) if wanted[key].lazy]
            order = self._residents.evictable(lazy, busy_too=busy_too and not self._releasing)
            self._send_off(order[:1], version)
        return False

    def _room_may_come(self, version: Version, wanted: Mapping[str, AssignedVersion]) -> bool:
        leave = (wanted[key].lazy or wanted[key].role == "draining" for key in self._alike(version))
        return bool(self._releasing) or any(leave)

    def _alike(self, version: Version) -> list[str]:
        """Who else takes room of the kind that an engine lacks which refuses the version: it counts LoRAs as the agent
        does, so that of a version with prefix or prompt adapters their memory is in question."""
        soft = has_soft(version)
        others = (key for key in self._held if key != version.key)
        return [key for key in others if not soft or has_soft(self._held[key])]

    def _send_off(self, keys: Iterable[str], version: Version) -> None:
        for key in keys:
            logger.info("%s makes room for %s.", key, version.key)
            self._release(key)

    def _release(self, key: str) -> None:
        version = self._held.pop(key)
        task = asyncio.create_task(self._released(key), name=f"choir-release-{key}")
        self._releasing[key] = _Leaving(version, self._residents.busy(key), task)

    async def _released(self, key: str) -> None:
        try:
            await self._engine.release(key)
        except Exception:  # it is out of use either way; its slot is the engine's to report
            logger.exception("%s could not be released.", key)
        finally:
            del self._releasing[key]
            self._refused.clear()
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


def _verify(version: Version) -> None:
    """Compare the files on this machine with their digests, the adapters' and the fusion's. Raises PrepareError."""
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
    if version.parameters is not None and version.parameters_digest is not None:
        _verify_parameters(Path(version.parameters), version.parameters_digest)


def _verify_parameters(file: Path, digest: str) -> None:
    try:
        found = file_digest(file)
    except OSError as error:
        raise PrepareError(
            f"the fitted parameters {digest} cannot be read: {error.strerror}"
        ) from error
    if found != digest:
        raise PrepareError(
            f"the fitted parameters {digest} have changed on disk, their digest is {found} now; remove {file} and "
            "start again"
        )

"""Decides which versions on demand leave an engine so that another one fits.

Nothing here loads or releases anything: that is the engine agent's part."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from time import monotonic

from serve.engine.interface import Version
from serve.protocol.capacity import Capacity, has_soft, loras_of
from serve.protocol.messages import AssignedVersion

TURN_SECONDS = 2.0
"""How long a version in constant use stays while another one waits for its room."""
IDLE_SECONDS = 0.1
"""How long a version must be without requests before it may leave within its turn. A client that sends one request
after the other leaves short gaps, and each of them would cost a load."""


@dataclass(frozen=True)
class Leaving:
    """A version that the engine is releasing."""

    version: Version
    busy: bool
    """Whether requests ran on it when its release began. How long they take is unknown."""


@dataclass(frozen=True)
class Contents:
    """What an engine holds, and how much it can hold."""

    held: Mapping[str, AssignedVersion]
    """Loaded versions, by `name@version`."""
    leaving: Mapping[str, Leaving]
    """Versions that still take room, and soon will not."""
    capacity: Capacity


@dataclass(frozen=True)
class Decision:
    """What to do for a version that is to be loaded."""

    load: bool
    """Load it now: it fits, or waiting would not help, and the engine says what it lacks."""
    evict: tuple[str, ...] = ()
    """Release these versions first."""


LOAD = Decision(load=True)
WAIT = Decision(load=False)


class Evictor:
    """Knows how much each version is used, and chooses the versions that make room."""

    def __init__(self) -> None:
        self._requests: Counter[str] = Counter()
        self._used: dict[str, float] = {}
        """When the last request of a version ended, on the monotonic clock."""
        self._loaded: dict[str, float] = {}
        """When a version was loaded."""
        self._refused: set[str] = set()
        """Versions that the engine has refused for want of room since a version was last released."""

    def request_began(self, key: str) -> None:
        """Count a request, also while it waits: its version is not idle from now on."""
        self._requests[key] += 1

    def request_ended(self, key: str) -> bool:
        """Return whether the version has no more requests."""
        self._used[key] = monotonic()
        self._requests[key] -= 1
        if self._requests[key]:
            return False
        del self._requests[key]
        return True

    def busy(self, key: str) -> bool:
        """Return whether the version has requests."""
        return self._requests[key] > 0

    def loaded(self, key: str) -> None:
        """Begin the turn of a version that has just been loaded."""
        self._loaded[key] = monotonic()

    def released(self) -> None:
        """Note that a version has left: the engine may have room now for those that it refused."""
        self._refused.clear()

    def refused(self, version: Version, contents: Contents) -> bool:
        """Note that the engine has no room for the version. Return whether waiting can help: whether a version that
        takes room of the same kind is leaving or may leave."""
        if not _can_come(version, contents):
            return False
        self._refused.add(version.key)
        return True

    def forget(self, known: Collection[str]) -> None:
        """Drop what belongs to versions that are not `known`."""
        for times in (self._used, self._loaded):
            for key in [key for key in times if key not in known]:
                del times[key]

    def decide(self, version: Version, contents: Contents, waiting_since: float | None) -> Decision:
        """Return what to do for a version that is to be loaded.

        `waiting_since` is when requests began to wait for it, on the monotonic clock; None for a version that a
        rollout or the start needs. Versions in constant use leave for the latter at once, and for requests only
        after these have waited for TURN_SECONDS. Only versions on demand that no rollout needs are evicted."""
        if version.key in contents.leaving:
            return WAIT
        busy_too = waiting_since is None or monotonic() >= waiting_since + TURN_SECONDS
        decide = self._for_memory if version.key in self._refused else self._for_loras
        return decide(version, contents, busy_too=busy_too)

    def _for_loras(self, version: Version, contents: Contents, *, busy_too: bool) -> Decision:
        """Decide by the number of LoRAs."""
        needed, capacity = loras_of(version), contents.capacity
        held = {key: loras_of(each.version) for key, each in contents.held.items()}
        leaving = {key: loras_of(each.version) for key, each in contents.leaving.items()}
        if capacity.holds(needed, *held.values(), *leaving.values()):
            return LOAD
        # A version that had no requests is gone in a moment. A busy one is not waited for if an idle one can leave.
        staying = held | {key: leaving[key] for key, each in contents.leaving.items() if each.busy}
        if capacity.holds(needed, *staying.values()):
            return WAIT
        lazy = [key for key, each in contents.held.items() if each.lazy]
        idle = self._evictable(lazy, busy_too=False)
        evict = fewest_evictions(needed, staying, idle, capacity)
        if not evict:
            evictable = self._evictable(lazy, busy_too=busy_too)
            evict = fewest_evictions(needed, held, evictable, capacity)
        draining = any(each.role == "draining" for each in contents.held.values())
        fixed = [loras for key, loras in held.items() if not contents.held[key].lazy]
        can_come = bool(evict or leaving or draining) or capacity.holds(needed, *fixed)
        return Decision(load=not can_come, evict=tuple(evict))

    def _for_memory(self, version: Version, contents: Contents, *, busy_too: bool) -> Decision:
        """Decide for a version that the engine has refused. Nobody knows how much room it needs, so one version after
        another leaves until the engine takes it."""
        if not _can_come(version, contents):
            return LOAD
        if not all(each.busy for each in contents.leaving.values()):
            return WAIT
        lazy = [key for key in _same_kind(version, contents) if contents.held[key].lazy]
        order = self._evictable(lazy, busy_too=busy_too and not contents.leaving)
        return Decision(load=False, evict=tuple(order[:1]))

    def _evictable(self, versions: Collection[str], *, busy_too: bool) -> list[str]:
        """Return which of the `versions` may leave, in the order in which they should.

        Versions without requests come first, the least recently used before the others. With `busy_too`, versions in
        constant use that have had their turn follow."""
        now = monotonic()
        last = {key: max(self._used.get(key, 0.0), self._loaded.get(key, 0.0)) for key in versions}

        def may_leave(key: str) -> bool:
            if self._loaded.get(key, 0.0) <= now - TURN_SECONDS:
                return busy_too or not self.busy(key)
            return not self.busy(key) and last[key] <= now - IDLE_SECONDS

        return sorted(filter(may_leave, versions), key=lambda key: (self.busy(key), last[key]))


def fewest_evictions(
    needed: Collection[str],
    held: Mapping[str, Collection[str]],
    evictable: Sequence[str],
    capacity: Capacity,
) -> list[str]:
    """Return which versions have to leave so that the LoRAs `needed` fit beside the rest of `held` (version -> its
    LoRAs), the first of `evictable` before the others. Returns an empty list if all of them together are not enough."""

    def fits_without(gone: Collection[str]) -> bool:
        return capacity.holds(needed, *(loras for key, loras in held.items() if key not in gone))

    evict: list[str] = []
    for key in evictable:
        if fits_without(evict):
            break
        evict.append(key)
    if not fits_without(evict):
        return []
    for key in list(evict):  # a version that shares its LoRAs with others may leave in vain
        rest = [each for each in evict if each != key]
        if fits_without(rest):
            evict = rest
    return evict


def _can_come(version: Version, contents: Contents) -> bool:
    """Return whether room may come for a version that the engine has refused."""
    held = (contents.held[key] for key in _same_kind(version, contents))
    return bool(contents.leaving) or any(each.lazy or each.role == "draining" for each in held)


def _same_kind(version: Version, contents: Contents) -> list[str]:
    """Return the other loaded versions that take the kind of room that `version` lacks. LoRAs are counted before the
    engine is asked; so if the version has soft adapters, it lacks the memory that soft adapters take."""
    soft = has_soft(version)
    others = {key: each.version for key, each in contents.held.items() if key != version.key}
    return [key for key, other in others.items() if not soft or has_soft(other)]

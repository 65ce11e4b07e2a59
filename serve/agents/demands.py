"""The versions that requests wait for, and those that could not be loaded a short time ago."""

import asyncio
from collections.abc import Collection
from dataclasses import dataclass, field
from time import monotonic

from serve.errors import Refusal

RETRY_SECONDS = 10.0
"""How long a version that could not be loaded is not tried again."""


@dataclass
class Demand:
    """Requests that wait until a version is loaded."""

    since: float = field(default_factory=monotonic)
    """When the first of them came, on the monotonic clock."""
    answer: asyncio.Future[Refusal | None] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )
    """Why the version cannot be loaded; None once it is loaded."""


class Demands:
    """The demands for versions in their order, and recent failures."""

    def __init__(self) -> None:
        self._demands: dict[str, Demand] = {}
        self._failed: dict[str, tuple[float, Refusal]] = {}
        """When to try a version again, and why it could not be loaded."""

    def add(self, key: str) -> asyncio.Future[Refusal | None]:
        """Ask for a version to be loaded, after those that were asked for before.

        Returns the answer: None once it is loaded, else why it cannot be. A version that failed a short time ago is
        answered at once."""
        failure = self.failure(key)
        if failure is not None:
            known: asyncio.Future[Refusal | None] = asyncio.get_running_loop().create_future()
            known.set_result(failure)
            return known
        return self._demands.setdefault(key, Demand()).answer

    def waiting(self) -> list[tuple[str, Demand]]:
        """Return the demands by version, the longest waiting first."""
        return list(self._demands.items())

    def settle(self, key: str, refusal: Refusal | None = None) -> None:
        """Let the requests for a version go on, or refuse them all."""
        demand = self._demands.pop(key, None)
        if demand is not None and not demand.answer.done():
            demand.answer.set_result(refusal)

    def loaded(self, key: str) -> None:
        """Settle the demand for a version that is loaded now."""
        self._failed.pop(key, None)
        self.settle(key)

    def failed(self, key: str, reason: str) -> None:
        """Refuse the requests for a version, also those of the next RETRY_SECONDS."""
        refusal = Refusal(503, f"{key} cannot be loaded: {reason}", "load_failed")
        self._failed[key] = monotonic() + RETRY_SECONDS, refusal
        self.settle(key, refusal)

    def failure(self, key: str) -> Refusal | None:
        """Return why the version could not be loaded, until it is time to try again."""
        until, refusal = self._failed.get(key, (0.0, None))
        return refusal if monotonic() < until else None

    def retry_in(self, key: str) -> float:
        """Return the seconds until a version that failed is tried again."""
        until, _ = self._failed.get(key, (0.0, None))
        return max(0.0, until - monotonic())

    def forget(self, known: Collection[str]) -> None:
        """Drop what belongs to versions that are not `known`. Requests that wait for one look for newer routes."""
        for key in [key for key in self._demands if key not in known]:
            self.settle(key)
        for key in [key for key in self._failed if key not in known]:
            del self._failed[key]

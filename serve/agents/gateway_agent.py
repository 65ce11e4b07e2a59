"""Keeps the routes of a gateway equal to the desired state."""

import asyncio
from collections.abc import Mapping

from serve.agents.lease import ControllerLink, Lease, new_participant
from serve.agents.ledger import Ledger
from serve.agents.routes import Routes
from serve.protocol.messages import Desired, StatusReport
from serve.watching import replicas


class GatewayAgent:
    """Holds the newest routes and the counts of trials, and renews the gateway's lease in the background."""

    def __init__(self, link: ControllerLink, retry_seconds: float = 0.1) -> None:
        self.participant = new_participant("gateway")
        self.routes = Routes({})
        self.ledger = Ledger()
        self._ready_engines: Mapping[str, int] = {}
        self._routed = asyncio.Event()
        self.stopping = asyncio.Event()
        """Set once the controller says that the server stops."""
        self._lease = Lease(link, self._report, self._apply, retry_seconds)

    async def start(self) -> None:
        """Start the lease. Return once the first routes are known."""
        self._lease.start()
        await self._routed.wait()

    async def stop(self) -> None:
        """End the lease."""
        sequence = self._lease.next_sequence()
        await self._lease.stop(
            StatusReport(self.participant, "gateway", sequence, 0, ready=False, leaving=True)
        )

    async def refresh(self, seconds: float = 2.0) -> bool:
        """Fetch the newest routes, for a request whose version an engine no longer holds.

        Returns whether the controller answered within `seconds`."""
        return await self._lease.refresh(seconds)

    @property
    def degraded(self) -> bool:
        """Whether the lease has run out, so that the routes may be old."""
        return self._lease.degraded

    @property
    def ready(self) -> bool:
        """Whether each pool has an engine that is ready, as far as the controller has told."""
        return bool(self._ready_engines) and all(self._ready_engines.values())

    @property
    def waiting_for(self) -> list[str]:
        """The pools without an engine that is ready, where there are several pools."""
        lacking = [pool for pool, engines in self._ready_engines.items() if not engines]
        return lacking if len(self._ready_engines) > 1 else []

    def ready_engines(self, pool: str) -> int:
        """Return how many engines of this pool are ready, as far as the controller has told."""
        return self._ready_engines.get(pool, 0)

    def _report(self, sequence: int, seen: int) -> StatusReport:
        return StatusReport(
            self.participant,
            "gateway",
            sequence,
            seen,
            ready=self._routed.is_set(),
            figures=self.ledger.figures(),
        )

    def _apply(self, desired: Desired) -> None:
        self.routes = Routes.of(desired)
        self.ledger.follow(self.routes.trials)
        replicas.versions_routed(self.routes.active())
        if desired.ready_engines is not None:
            self._ready_engines = desired.ready_engines
        self._routed.set()
        if desired.stopping:
            self.stopping.set()

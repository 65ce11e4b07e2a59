"""A link between agents and the controller that loses messages."""

from random import Random
from time import monotonic

from serve.protocol.messages import Desired, StatusReport
from tests.serve.fakes import Link, NamedLink

LEASE_SECONDS = 1.0
SILENT_SECONDS = LEASE_SECONDS / 2
"""An engine that the controller has not heard for longer may have lost its lease."""


class LossyLink(Link):
    """Loses reports and answers, and brings some reports again, too late."""

    def __init__(self, random: Random) -> None:
        super().__init__()
        self.random = random
        self.loss = 0.0
        """How likely it is that a message is lost or late."""
        self.heard: dict[str, float] = {}
        """Participant -> when the controller last heard of it."""
        self.silent: set[str] = set()
        """Participants that were not heard for so long that the controller may have gone on without them."""
        self.late: list[StatusReport] = []

    def of(self, name: str) -> NamedLink:
        return _LossyEnd(self, name)

    def arrived(self, participant: str) -> None:
        self.note_silence(participant)
        self.heard[participant] = monotonic()

    def note_silence(self, participant: str) -> None:
        if monotonic() - self.heard.get(participant, monotonic()) > SILENT_SECONDS:
            self.silent.add(participant)


class _LossyEnd(NamedLink):
    def __init__(self, link: LossyLink, name: str) -> None:
        super().__init__(link, name)
        self._lossy = link

    async def sync(self, report: StatusReport) -> Desired:
        self._lose("the report was lost")
        if self._unlucky():
            self._lossy.late.append(report)
        self._reach()
        self._lossy.arrived(report.participant)
        desired = await super().sync(report)
        self._lose("the answer was lost")
        return desired

    def _lose(self, what: str) -> None:
        if self._unlucky():
            raise ConnectionError(what)

    def _unlucky(self) -> bool:
        return self._lossy.random.random() < self._lossy.loss

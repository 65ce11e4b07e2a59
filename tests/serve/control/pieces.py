"""The parts of the model of the rollout protocol: versions, programs of bytes, engines and gateways."""

from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from serve.agents.ledger import Ledger
from serve.control.records import VersionRecord
from serve.manifest import AdapterRef, Ensemble, FusionSpec, Member
from serve.protocol.messages import AssignedVersion, ParticipantKind, PrepareResult, StatusReport
from serve.protocol.strategy import Strategy

LEASE = 30
TIMEOUT = 60
MAX_SECONDS = 200
SLOTS = 9
NAME = "intents"

GATES = {"min_requests": 3, "max_error_rate": 0.3, "max_seconds": MAX_SECONDS}
STRATEGIES = [
    Strategy(),
    Strategy.model_validate({"kind": "canary", "gates": GATES}),
    Strategy.model_validate({"kind": "shadow", "gates": GATES}),
    Strategy.model_validate({"kind": "canary", "gates": GATES, "auto_promote": False}),
]


@cache
def version(number: int, request: int = 0) -> VersionRecord:
    """Version `number`, as made by a request. No two requests make the same content."""
    digest = f"sha256:{number % 3:064x}"
    member = Member(name="a", adapters=[AdapterRef(adapter="x", digest=digest)])
    ensemble = Ensemble(
        format=1,
        name=NAME,
        version=number,
        task="classification",
        members=[member],
        fusion=FusionSpec(method="average"),
        labels=["yes", "no"],
    )
    return VersionRecord(ensemble, f"request {request}", "")


class NoFiles:
    """A store that only tells where files would be."""

    @staticmethod
    @cache
    def adapter(digest: str) -> Path:
        return Path(digest)


class Program:
    """Makes choices from bytes. It is over when all bytes are used."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def over(self) -> bool:
        return self._at >= len(self._data)

    def below(self, bound: int) -> int:
        """A number from 0 to `bound` - 1; 0 once the program is over."""
        at = self._at
        if at >= len(self._data):
            return 0
        self._at = at + 1
        return self._data[at] % bound

    def one_in(self, count: int) -> bool:
        return self.below(count) == count - 1

    def of(self, items: list[Any]) -> Any:
        return items[self.below(len(items))]


@dataclass(eq=False)
class Node:
    """An engine or a gateway."""

    name: str
    kind: ParticipantKind
    sequence: int = 0
    seen: int = 0
    lease_until: int = -1
    desired: dict[str, AssignedVersion] = field(default_factory=dict)
    routed: frozenset[str] = frozenset()
    held: set[str] = field(default_factory=set)
    results: dict[str, PrepareResult] = field(default_factory=dict)
    ledger: Ledger = field(default_factory=Ledger)
    sound: bool = False
    """Engines: it has loaded all desired versions, and its lease has not run out since."""
    lacks: str | None = None
    """Engines: the version that gateways may ask for although this engine could not load it in time. It answers that it
    lacks the version. The gateway then asks another engine, or the active version."""
    raising: bool = False
    """Engines: all requests to it end in an exception."""

    def report(self) -> StatusReport:
        self.sequence += 1
        return StatusReport(
            self.name,
            self.kind,
            self.sequence,
            self.seen,
            ready=self.sound,
            prepared=dict(self.results),
            holding=tuple(self.held),
            figures=self.ledger.figures(),
        )

    def apply(self, assigned: tuple[AssignedVersion, ...], revision: int) -> None:
        self.desired = {each.version.key: each for each in assigned}
        self.routed = frozenset(key for key, each in self.desired.items() if each.routable)
        self.ledger.follow(self.trials())
        self.seen = revision

    def trials(self) -> list[str]:
        return [each.attempt for each in self.desired.values() if each.trial and each.attempt]

    def todo(self) -> list[AssignedVersion]:
        """The versions that an engine has to prepare, by the rule of `EngineAgent`."""
        return [each for key, each in self.desired.items() if not self._settled(key, each)]

    def _settled(self, key: str, assigned: AssignedVersion) -> bool:
        if assigned.attempt is None:
            return key in self.held
        result = self.results.get(key)
        return result is not None and result.attempt == assigned.attempt

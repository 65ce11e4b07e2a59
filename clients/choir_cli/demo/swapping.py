"""Replaces one member's adapter while clients ask without a pause."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from choir_cli.console import out
from choir_cli.demo.load import Load
from choir_client import Choir

REQUESTS_BEFORE = 50
REQUESTS_AFTER = 50


@dataclass(frozen=True)
class Swap:
    """The answers that clients got while an adapter was replaced."""

    before: str
    after: str
    first_after: str
    """The version that answered the first request after the swap returned."""
    fit: str
    """The state of the fusion after the swap: `refitted` if it was fitted again for the new adapter."""
    seconds: float
    requests: int
    failures: Sequence[str]
    unexpected: Sequence[str]
    """Versions that answered, other than the two."""

    @property
    def worked(self) -> bool:
        return not self.failures and not self.unexpected and self.first_after == self.after

    def show(self) -> None:
        """Print what clients noticed."""
        out.print(
            f"swap {self.before} -> {self.after}: {self.seconds:.1f} s, {self.requests} requests during it, "
            f"failures: {len(self.failures)}, fusion: {self.fit}"
        )
        for problem in sorted(set(self.failures))[:3]:
            out.print(f"  failed: {problem}")
        if self.first_after != self.after:
            out.print(
                f"  wrong: the first request after the swap was answered by {self.first_after}"
            )
        if self.unexpected:
            out.print(f"  wrong: answers by {', '.join(self.unexpected)}")


def swap_under_load(
    choir: Choir, ensemble: str, member: str, adapter: Path, texts: Sequence[str]
) -> Swap:
    """Swap `member` to `adapter` while four clients ask the ensemble. Raises ChoirError if the server refuses."""
    before = choir.predict(ensemble, texts[0]).model
    out.print(f"4 clients ask {before} without a pause, while {member} gets another adapter")
    with Load(choir.url, ensemble, texts) as load:
        load.wait_for(REQUESTS_BEFORE)
        started = time.monotonic()
        rollout = choir.swap(
            ensemble,
            members={member: adapter.resolve().as_uri()},
            expected_version=int(before.partition("@")[2]),
        )
        first_after = choir.predict(ensemble, texts[0]).model
        seconds = time.monotonic() - started
        load.wait_for(REQUESTS_AFTER)
        fit = choir.ensemble(ensemble).fusion_fit
    after = f"{ensemble}@{rollout.to_version}"
    return Swap(
        before=before,
        after=after,
        first_after=first_after,
        fit=str(fit.get("state")),
        seconds=seconds,
        requests=load.requests,
        failures=load.failures,
        unexpected=sorted(set(load.versions) - {before, after}),
    )

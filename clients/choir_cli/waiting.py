"""Waits for a shadow or a canary, and shows what it has counted meanwhile."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic, sleep

from rich.live import Live
from rich.text import Text

from choir_cli.console import out
from choir_cli.overview import state
from choir_client import Choir, Rollout, Trial
from serve.terminal.words import counted

PAUSE_SECONDS = 0.5
"""How often the server is asked."""
LINE_SECONDS = 10.0
"""How often a pipe gets a line while nothing but counts changes."""


def follow(choir: Choir, rollout: Rollout) -> Rollout:
    """Return the rollout once every replica has committed it, or it is aborted.

    Until then its counts are one line on a terminal that is written anew, and plain lines now and then in a pipe.
    Ctrl-C ends the wait, not the rollout."""
    began = monotonic()
    try:
        with _one_line() if out.is_terminal else _lines() as show:
            while rollout.open:
                show(rollout, monotonic() - began)
                sleep(PAUSE_SECONDS)
                rollout = choir.rollout(rollout.id)
    except KeyboardInterrupt:
        out.say("The rollout goes on without this command. To end it:")
        out.verbatim(f"  choir abort {rollout.id}")
        raise
    return rollout


def progress(rollout: Rollout, seconds: float) -> str:
    """Return how far a rollout is, in one line: its state, and the counts of its trial so far."""
    trial = rollout.trial
    parts = [*(_counts(trial) if trial and trial.candidate.requests else ()), f"{seconds:.0f} s"]
    return f"{state(rollout)}: {', '.join(parts)}"


def _counts(trial: Trial) -> Iterator[str]:
    candidate, stable = trial.candidate, trial.stable
    needed = trial.gates.get("min_requests")
    yield (
        f"{candidate.requests} of {counted(int(needed), 'request')}"
        if needed
        else counted(candidate.requests, "request")
    )
    if trial.agreement is not None:
        yield f"agreement {trial.agreement:.1%}"
    yield counted(candidate.errors, "error")
    if candidate.mean_ms is not None and stable.mean_ms:
        yield f"latency {candidate.mean_ms / stable.mean_ms:.2f}x"


Show = Callable[[Rollout, float], None]


@contextmanager
def _one_line() -> Iterator[Show]:
    """Yield what shows the progress on a terminal. The line is gone at the end."""
    with Live(console=out, transient=True, auto_refresh=False) as live:
        yield lambda rollout, seconds: live.update(
            Text(progress(rollout, seconds), no_wrap=True, overflow="ellipsis"), refresh=True
        )


@contextmanager
def _lines() -> Iterator[Show]:
    """Yield what shows the progress in a pipe: each new state at once, and counts now and then."""
    last_state, last_at = "", 0.0

    def show(rollout: Rollout, seconds: float) -> None:
        nonlocal last_state, last_at
        if rollout.state != last_state or seconds - last_at >= LINE_SECONDS:
            last_state, last_at = rollout.state, seconds
            out.say(progress(rollout, seconds))

    yield show

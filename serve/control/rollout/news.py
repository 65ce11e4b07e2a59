"""What the console says of rollouts: when one is tried out, goes live, is aborted, or goes on after a restart."""

import logging

from serve.control.rollout.state import TRIALS, Rollout, State
from serve.logs.events import EventKind, tell

logger = logging.getLogger(__name__)


def tell_step(rollout: Rollout, before: State) -> None:
    """Tell an operator that a rollout has come from the state `before` to the one that it is in, if that is news."""
    version, number = f"version {rollout.to_version}", rollout.from_version
    match rollout.state:
        case State.SHADOWING | State.CANARYING:
            share = f"{rollout.strategy.share * 100:g}% of the requests"
            answers = rollout.state is State.CANARYING
            tried = f"answers {share}" if answers else f"is asked {share} too"
            _tell(rollout, "trial", f"{version} {tried}")
        case State.COMMITTING:
            if before in TRIALS:
                by = f", promoted by {rollout.decided_by}" if rollout.decision == "promote" else ""
                _tell(rollout, "trial", f"{version} has passed its trial{by}")
            again = " again" if rollout.action == "rollback" else ""
            _tell(rollout, rollout.action, f"{version} is live{again}, instead of {number}")
        case State.ABORTED:
            what = "has not passed its trial" if before in TRIALS else "does not go live"
            said = f"{version} {what}: {_reason(rollout)}. Version {number} stays live"
            _tell(rollout, "trial" if before in TRIALS else "aborted", said)
        case State.DONE:
            logger.info("%s: version %d has drained.", rollout.ensemble, number)


def tell_recovery(rollout: Rollout) -> None:
    """Tell an operator what a new controller does with a rollout of an earlier one."""
    ends = "ends" if rollout.state is State.ABORTED else "goes on"
    change = f"the change to version {rollout.to_version} {ends}"
    _tell(rollout, "recovery", f"the controller restarted, and {change}")


def _reason(rollout: Rollout) -> str:
    return (rollout.reason or "no reason is known").rstrip(".")


def _tell(rollout: Rollout, event: EventKind, message: str) -> None:
    tell(
        logger,
        event,
        f"{rollout.ensemble}: {message} ({rollout.action} {rollout.id}: {rollout.actor}).",
        ensemble=rollout.ensemble,
        rollout=rollout.id,
        actor=rollout.actor,
    )

"""Judges by its figures whether a candidate that is tried out has passed its gates."""

from dataclasses import dataclass
from typing import Literal

from serve.protocol.figures import Figures
from serve.protocol.strategy import Strategy


@dataclass(frozen=True)
class Verdict:
    """`passed`, `failed` (which is final), or `late`: the time is over and nothing is decided."""

    outcome: Literal["passed", "failed", "late"]
    reason: str = ""


def judge(strategy: Strategy, figures: Figures, seconds: float) -> Verdict | None:
    """The verdict after `seconds` of a trial; None while it is open.

    A rate is judged after `min_requests` requests. It fails earlier if it could not be kept even if all missing
    requests went well."""
    failure = _failed(strategy, figures)
    if failure is not None:
        return Verdict("failed", failure)
    missing = _missing(strategy, figures)
    if missing is None:
        return Verdict("passed")
    if strategy.max_seconds is not None and seconds >= strategy.max_seconds:
        return Verdict("late", f"after {strategy.max_seconds:g} seconds {missing}")
    return None


def _failed(strategy: Strategy, figures: Figures) -> str | None:
    gates, candidate = strategy.gates, figures.candidate
    enough = max(candidate.requests, gates.min_requests)
    if candidate.errors > gates.max_error_rate * enough:
        return (
            f"{candidate.errors} of {candidate.requests} requests to the candidate failed, more "
            f"than the max_error_rate of {gates.max_error_rate:.2%}"
        )
    if gates.min_agreement is not None:
        enough = max(figures.compared, gates.min_requests)
        if figures.compared - figures.agreed > (1 - gates.min_agreement) * enough + 1e-9:
            return (
                f"the candidate agrees with the active version on {figures.agreement:.2%} of "
                f"{figures.compared} requests, less than the min_agreement of "
                f"{gates.min_agreement:.2%}"
            )
    ratio = _latency_ratio(strategy, figures)
    if (
        ratio is not None
        and gates.max_latency_ratio is not None
        and ratio > gates.max_latency_ratio
    ):
        return (
            f"the candidate takes {ratio:.2f} times as long as the active version, more than the "
            f"max_latency_ratio of {gates.max_latency_ratio:g}"
        )
    return None


def _missing(strategy: Strategy, figures: Figures) -> str | None:
    """Which requests are missing to pass, as the end of a sentence; None if none are."""
    gates = strategy.gates
    counts = {"the candidate has answered": figures.candidate.requests}
    if gates.min_agreement is not None:
        counts["both versions have answered"] = figures.compared
    if gates.max_latency_ratio is not None:
        counts["the active version has answered"] = figures.stable.requests
    for who, count in counts.items():
        if count < gates.min_requests:
            return f"{who} {count} of the {gates.min_requests} requests that the gates need"
    return None


def _latency_ratio(strategy: Strategy, figures: Figures) -> float | None:
    """The candidate's mean latency divided by the active version's; None until both have answered enough requests."""
    if min(figures.candidate.requests, figures.stable.requests) < strategy.gates.min_requests:
        return None
    mine, other = figures.candidate.mean_seconds, figures.stable.mean_seconds
    return mine / other if mine is not None and other else None

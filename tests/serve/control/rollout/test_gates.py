"""Figures pass or fail the gates in time, and not before it is certain."""

from typing import Any

import pytest

from serve.agents.ledger import Ledger
from serve.control.rollout.gates import judge
from serve.protocol.figures import Figures, Tally, total
from serve.protocol.strategy import Strategy


def canary(*, auto_promote: bool = True, **gates: Any) -> Strategy:
    gates = {"min_requests": 100, "max_error_rate": 0.05, **gates}
    return Strategy.model_validate({"kind": "canary", "gates": gates, "auto_promote": auto_promote})


def counted(
    candidate: tuple[int, int, float] = (0, 0, 0),
    stable: tuple[int, int, float] = (0, 0, 0),
    compared: int = 0,
    agreed: float = 0,
) -> Figures:
    return Figures(Tally(*candidate), Tally(*stable), compared, agreed)


def outcome(strategy: Strategy, figures: Figures, seconds: float = 0) -> str | None:
    verdict = judge(strategy, figures, seconds)
    return verdict and verdict.outcome


@pytest.mark.parametrize(
    ("requests", "errors", "expected"),
    [
        (0, 0, None),
        (99, 5, None),
        (100, 0, "passed"),
        (100, 5, "passed"),
        (100, 6, "failed"),
        (6, 6, "failed"),  # 6 of 100 would be too many already
        (5, 5, None),  # 5 of 100 would not
        (1000, 50, "passed"),
        (1000, 51, "failed"),
    ],
)
def test_errors(requests: int, errors: int, expected: str | None) -> None:
    assert outcome(canary(), counted((requests, errors, 1.0))) == expected


@pytest.mark.parametrize(
    ("compared", "agreed", "expected"),
    [
        (99, 99, None),
        (100, 100, "passed"),
        (100, 90, "passed"),
        (100, 89.5, "failed"),
        (11, 0, "failed"),
        (10, 0, None),
        (1000, 899, "failed"),
    ],
)
def test_agreement(compared: int, agreed: float, expected: str | None) -> None:
    figures = counted((2000, 0, 1.0), compared=compared, agreed=agreed)
    assert outcome(canary(min_agreement=0.9), figures) == expected


@pytest.mark.parametrize(
    ("candidate", "stable", "expected"),
    [
        ((100, 0, 15.0), (100, 0, 10.0), "passed"),
        ((100, 0, 15.1), (100, 0, 10.0), "failed"),
        ((100, 0, 99.0), (99, 0, 10.0), None),
        ((99, 0, 99.0), (100, 0, 10.0), None),
        ((200, 0, 30.0), (1000, 0, 100.0), "passed"),
    ],
)
def test_latency(
    candidate: tuple[int, int, float], stable: tuple[int, int, float], expected: str | None
) -> None:
    assert outcome(canary(max_latency_ratio=1.5), counted(candidate, stable)) == expected


def test_time_runs_out_unless_somebody_is_to_decide() -> None:
    few = counted((7, 0, 1.0))
    assert outcome(canary(max_seconds=60), few, 59.9) is None
    verdict = judge(canary(max_seconds=60), few, 60)
    assert verdict is not None
    assert verdict.outcome == "late"
    assert "after 60 seconds the candidate has answered 7 of the 100 requests" in verdict.reason
    assert outcome(canary(), few, 3600) == "late"
    assert outcome(canary(auto_promote=False), few, 1e6) is None
    assert outcome(canary(max_seconds=60), counted((100, 0, 1.0)), 60) == "passed"


@pytest.mark.parametrize(
    ("gates", "figures", "words"),
    [
        ({}, counted((10, 6, 1.0)), "6 of 10 requests to the candidate failed, more than"),
        ({"min_agreement": 0.95}, counted((100, 0, 1), compared=100, agreed=80), "on 80.00% of"),
        (
            {"max_latency_ratio": 1.2},
            counted((100, 0, 30.0), (100, 0, 10.0)),
            "3.00 times as long",
        ),
    ],
)
def test_a_failure_says_what_was_counted(gates: Any, figures: Figures, words: str) -> None:
    verdict = judge(canary(**gates), figures, 0)
    assert verdict is not None
    assert words in verdict.reason


def test_a_ledger_counts_only_what_is_under_way() -> None:
    ledger = Ledger()
    ledger.follow(["r1"])
    ledger.answered("r1", "candidate", 0.5, failed=False)
    ledger.answered("r1", "candidate", 0.1, failed=True)
    ledger.answered("r1", "stable", 0.2, failed=False)
    ledger.answered("r0", "stable", 0.2, failed=False)
    ledger.compared("r1", 0.5)
    ledger.dropped("r1")
    ledger.follow(["r1", "r2"])
    assert ledger.figures() == {
        "r1": Figures(Tally(2, 1, 0.6), Tally(1, 0, 0.2), 1, 0.5, 1),
        "r2": Figures(),
    }
    ledger.follow([])
    ledger.compared("r1", 1)
    assert ledger.figures() == {}


def test_counts_of_gateways_add_up_and_survive_json() -> None:
    some = Figures(Tally(2, 1, 0.5), Tally(1, 0, 0.25), 1, 0.5, 1)
    assert total([some, Figures(), some]) == Figures(Tally(4, 2, 1.0), Tally(2, 0, 0.5), 2, 1.0, 2)
    assert Figures.from_json(some.as_json()) == some

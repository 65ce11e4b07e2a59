"""A participant keeps its lease while the controller is slow, silent or away."""

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest

from serve.agents.gateway_agent import GatewayAgent
from serve.agents.lease import ControllerLink, Lease
from serve.protocol.messages import Desired, StatusReport
from tests.serve.fakes import until

LEASE = 0.1


def desired(revision: int, lease_seconds: float = LEASE) -> Desired:
    return Desired(revision, lease_seconds, (), ready_engines={"": 1})


class Script:
    """A controller that answers each report by calling the next of the given functions; the last one answers all
    further reports. A function that returns None gives no answer."""

    def __init__(self, *answers: Callable[[], Desired | None]) -> None:
        self.answers = list(answers)
        self.reports: list[StatusReport] = []

    async def sync(self, report: StatusReport) -> Desired:
        self.reports.append(report)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        result = answer()
        if result is None:
            await asyncio.Event().wait()
        assert result is not None
        await asyncio.sleep(0)
        return result


def away() -> None:
    raise ConnectionError


Keep = Callable[[ControllerLink], Lease]


@pytest.fixture
async def keep() -> AsyncIterator[Keep]:
    leases = []

    def start(script: ControllerLink) -> Lease:
        def report(sequence: int, seen: int) -> StatusReport:
            return StatusReport("p", "gateway", sequence, seen, ready=True)

        lease = Lease(script, report, lambda _: None, retry_seconds=0.001)
        lease.start()
        leases.append(lease)
        return lease

    yield start
    for lease in leases:
        await lease.stop()


async def test_reports_carry_the_seen_revision_and_are_numbered(keep: Keep) -> None:
    script = Script(lambda: desired(5), lambda: desired(6), lambda: None)
    keep(script)
    await until(lambda: len(script.reports) == 3)
    assert [report.seen_revision for report in script.reports] == [0, 5, 6]
    assert [report.sequence for report in script.reports] == [1, 2, 3]


async def test_a_participant_asks_a_hanging_controller_again_and_keeps_the_last_state(
    keep: Keep,
) -> None:
    script = Script(lambda: desired(5), lambda: None)
    lease = keep(script)
    await until(lambda: len(script.reports) >= 4)
    assert lease.degraded
    assert lease.desired == desired(5)


async def test_a_controller_that_comes_back_renews_the_lease(keep: Keep) -> None:
    script = Script(away, away, lambda: desired(5), lambda: None)
    lease = keep(script)
    assert lease.degraded
    await until(lambda: not lease.degraded)


async def test_news_are_reported_at_once(keep: Keep) -> None:
    script = Script(lambda: desired(5, lease_seconds=3600), lambda: None)
    lease = keep(script)
    await until(lambda: len(script.reports) == 2)
    lease.report_now()
    await until(lambda: len(script.reports) == 3)


async def test_a_refresh_is_urgent_until_it_is_answered(keep: Keep) -> None:
    script = Script(lambda: desired(5), lambda: None, away, lambda: desired(6), lambda: None)
    lease = keep(script)
    await until(lambda: len(script.reports) == 2)
    assert await lease.refresh(seconds=5)
    assert lease.desired == desired(6)
    await until(lambda: len(script.reports) == 5)
    assert [report.urgent for report in script.reports] == [False, False, True, True, False]


async def test_refreshes_at_the_same_time_share_one_report_and_news_come_after_it(
    keep: Keep,
) -> None:
    script = Slow(desired(5, lease_seconds=3600))
    lease = keep(script)
    script.answer.set()
    await until(lambda: len(script.reports) == 2)
    script.answer.clear()

    calls = [asyncio.create_task(lease.refresh(seconds=60))]
    await until(lambda: len(script.reports) == 3)
    calls += [asyncio.create_task(lease.refresh(seconds=60)) for _ in range(100)]
    await asyncio.gather(*(asyncio.wait({call}, timeout=0) for call in calls))
    lease.report_now()
    assert len(script.reports) == 3
    script.answer.set()

    assert await asyncio.gather(*calls) == [True] * 101
    await until(lambda: len(script.reports) == 5)
    assert [report.urgent for report in script.reports] == [False, False, True, True, False]
    assert script.cancelled == 1, "the round that waited for another state"


async def test_the_lease_is_renewed_however_often_there_is_news(keep: Keep) -> None:
    script = Slow(desired(5, lease_seconds=3600))
    script.answer.set()
    lease = keep(script)
    await until(lambda: len(script.reports) == 2)
    answered = script.answered
    for _ in range(1000):  # sooner than any answer comes
        lease.report_now()
        await asyncio.sleep(0)
    assert script.answered > answered + 10


class Slow:
    """A controller whose answers take a few turns of the event loop, and wait until `answer` is set."""

    def __init__(self, state: Desired) -> None:
        self.state = state
        self.reports: list[StatusReport] = []
        self.answer = asyncio.Event()
        self.answered = self.cancelled = 0

    async def sync(self, report: StatusReport) -> Desired:
        self.reports.append(report)
        try:
            if not report.urgent and report.seen_revision == self.state.revision:
                await asyncio.Event().wait()
            for _ in range(5):
                await asyncio.sleep(0)
            await self.answer.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        self.answered += 1
        return self.state


async def test_a_gateway_that_stops_ends_its_lease() -> None:
    script = Script(lambda: desired(5), lambda: None)
    agent = GatewayAgent(script, retry_seconds=0.001)
    await agent.start()
    script.answers = [lambda: desired(5)]
    await agent.stop()
    assert script.reports[-1].leaving
    assert script.reports[-1].sequence == max(report.sequence for report in script.reports)

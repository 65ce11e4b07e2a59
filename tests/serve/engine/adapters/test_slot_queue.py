"""Requests take adapter slots in turn."""

import asyncio
from typing import Any

import pytest

from serve.engine.adapters import slot_queue
from serve.engine.adapters.slot_queue import SlotQueue


class Slots:
    """Requests through turns, and the most adapters that ran at once."""

    def __init__(self, slots: int) -> None:
        self.queue = SlotQueue(slots)
        self.running: list[frozenset[str]] = []
        self.most = 0
        self.done: list[str] = []

    async def run(self, adapters: str, seconds: float = 0.0) -> None:
        wanted = frozenset(adapters)
        async with self.queue.turn(wanted):
            self.running.append(wanted)
            self.most = max(self.most, len(frozenset().union(*self.running)))
            try:
                await asyncio.sleep(seconds)
            finally:
                self.running.remove(wanted)
            self.done.append(adapters)

    def start(self, adapters: str, seconds: float = 0.0) -> asyncio.Task[None]:
        return asyncio.create_task(self.run(adapters, seconds))


@pytest.fixture(autouse=True)
def short_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slot_queue, "TURN_SECONDS", 0.1)


async def together(*work: Any) -> None:
    async with asyncio.timeout(20):
        await asyncio.gather(*work)


async def test_no_request_waits_if_all_adapters_fit() -> None:
    slots = Slots(4)
    await together(*(slots.run(each) for each in ("ab", "cd", "a", "abcd", "")))
    assert slots.done == ["ab", "cd", "a", "abcd", ""]


async def test_no_more_adapters_run_than_there_are_slots_and_all_get_their_turn() -> None:
    slots = Slots(3)
    names = ["abc", "de", "f", "gh", "a", "ij", "abd"] * 20
    await together(*(slots.run(each, 0.001) for each in names))
    assert sorted(slots.done) == sorted(names)
    assert slots.most == 3


async def test_busy_adapters_make_room_for_requests_that_wait() -> None:
    slots = Slots(2)
    stop = False

    async def hot() -> None:
        while not stop:
            await slots.run("ab", 0.002)

    clients = [asyncio.create_task(hot()) for _ in range(4)]
    await asyncio.sleep(0.02)
    await together(slots.run("cd"), slots.run("c"), slots.run("d"))
    before = len(slots.done)
    await asyncio.sleep(0.05)
    assert len(slots.done) > before, "the others go on"
    stop = True
    await together(*clients)
    assert slots.most == 2


async def test_requests_for_running_adapters_overtake_for_one_turn_and_then_wait() -> None:
    slots = Slots(1)
    first = slots.start("a", 0.3)
    await asyncio.sleep(0)
    waiting = slots.start("b")
    await asyncio.sleep(0)
    await together(slots.run("a"))
    assert slots.done == ["a"]
    await asyncio.sleep(0.15)
    late = slots.start("a")
    await together(first, waiting, late)
    assert slots.done == ["a", "a", "b", "a"]


async def test_a_request_without_adapters_never_waits() -> None:
    slots = Slots(1)
    async with slots.queue.turn(frozenset("a")):
        waiting = slots.start("b")
        await asyncio.sleep(0.15)
        await together(slots.run(""))
        assert slots.done == [""]
    await together(waiting)


async def test_a_cancelled_request_lets_the_next_one_start() -> None:
    slots = Slots(2)
    first = slots.start("a", 0.05)
    await asyncio.sleep(0)
    blocked = slots.start("bc")
    await asyncio.sleep(0)
    behind = slots.start("b")
    await asyncio.sleep(0)
    assert slots.done == []
    blocked.cancel()
    await together(behind)
    assert slots.done == ["b"]
    await together(first)
    with pytest.raises(asyncio.CancelledError):
        await blocked


async def test_a_cancelled_request_takes_no_slots_when_others_start() -> None:
    slots = Slots(1)
    async with slots.queue.turn(frozenset("a")):
        both = [slots.start("b"), slots.start("b", 0.05)]
        await asyncio.sleep(0)
        both[0].cancel()
    await together(both[1], slots.run("c"))
    assert slots.most == 1
    assert slots.done == ["b", "c"]


async def test_a_request_cancelled_at_its_start_takes_no_slots() -> None:
    slots = Slots(1)
    async with slots.queue.turn(frozenset("a")):
        late = slots.start("b")
        await asyncio.sleep(0)
    late.cancel()
    await together(slots.run("c"))
    assert slots.done == ["c"]

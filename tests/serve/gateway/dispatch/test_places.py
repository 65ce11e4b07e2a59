"""The places of a gateway: who starts, who waits, who is refused at once, and with which words."""

import asyncio
import itertools
import random
from collections import Counter

import pytest

from serve.errors import RefusedError
from serve.gateway.dispatch.places import Place, Places
from serve.watching.board import MetricsBoard, families
from tests.serve.watching.test_metrics import Sample, parse, total


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def places(total: int, queue: float = 0.5, **shares: float) -> Places:
    return Places(lambda: total, queue, shares)


def refused(places: Places, ensemble: str, members: int = 1, answers: int = 1) -> RefusedError:
    with pytest.raises(RefusedError) as caught:
        places.take(ensemble, members, answers)
    assert caught.value.refusal.status == 429
    return caught.value


def test_a_fused_request_takes_a_place_for_each_member() -> None:
    of = places(6, queue=0)
    first = [of.take("three", 3, 1) for _ in range(2)]
    assert all(place.runs for place in first)
    waiting = of.take("three", 3, 1)  # one of each ensemble may always wait
    assert not waiting.runs
    refused(of, "three", 3)
    first[0].leave()
    assert waiting.runs


async def test_turn_returns_when_a_place_is_free() -> None:
    of = places(1)
    first, second = of.take("a", 1, 1), of.take("a", 1, 1)
    turn = asyncio.create_task(second.turn())
    await asyncio.sleep(0)
    assert not turn.done()
    first.leave()
    await asyncio.wait_for(turn, 5)


def test_who_leaves_the_queue_is_never_started() -> None:
    of = places(1, queue=2)
    first, gone, last = (of.take("a", 1, 1) for _ in range(3))
    gone.leave()
    first.leave()
    assert (gone.runs, last.runs) == (False, True)
    last.leave()
    assert of.take("b", 1, 1).runs


def test_a_large_request_leaves_places_for_others() -> None:
    of = places(8)
    large = [of.take("a", 2, 1000) for _ in range(4)]
    assert [place.size for place in large] == [2] * 4
    assert all(place.runs for place in large)


def test_a_request_that_needs_more_places_than_there_are_takes_all_of_them() -> None:
    of = places(2)
    wide = of.take("five", 5, 1)
    assert wide.runs
    other = of.take("one", 1, 1)
    assert not other.runs
    wide.leave()
    assert other.runs


def test_a_free_place_goes_to_the_ensemble_that_has_fewest() -> None:
    of = places(4, queue=2)
    heavy = [of.take("heavy", 1, 1) for _ in range(10)]
    light = of.take("light", 1, 1)
    assert not light.runs
    heavy[0].leave()
    assert light.runs
    assert sum(place.runs for place in heavy[1:]) == 3


def test_a_flood_on_one_ensemble_does_not_refuse_another() -> None:
    of = places(4)
    for _ in range(100):
        try:
            of.take("heavy", 1, 1)
        except RefusedError:
            break
    refused(of, "heavy")
    assert not of.take("light", 3, 1).runs


def shares_under_load(of: Places, seed: int = 0) -> Counter[str]:
    """Let both ensembles send more than there is room for, end requests at random, and count what ran by ensemble."""
    rng = random.Random(seed)
    running: list[tuple[str, Place]] = []
    waiting: list[tuple[str, Place]] = []
    ran: Counter[str] = Counter()
    for _ in range(4000):
        for name, times in (("heavy", 9), ("light", 1)):
            for _ in range(times):
                try:
                    waiting.append((name, of.take(name, 1, 1)))
                except RefusedError:
                    break
        running += [each for each in waiting if each[1].runs]
        waiting = [each for each in waiting if not each[1].runs]
        name, place = running.pop(rng.randrange(len(running)))
        ran[name] += 1
        place.leave()
    return ran


def test_two_ensembles_that_ask_for_more_than_there_is_get_as_much() -> None:
    ran = shares_under_load(places(8))
    assert 0.45 < ran["light"] / ran.total() < 0.55


def test_shares_divide_a_full_server() -> None:
    ran = shares_under_load(places(8, heavy=3))
    assert 0.2 < ran["light"] / ran.total() < 0.3


def test_an_ensemble_alone_has_all_places_and_the_whole_queue() -> None:
    of = places(4, queue=1)
    taken = [of.take("a", 1, 1) for _ in range(8)]
    assert sum(place.runs for place in taken) == 4
    refused(of, "a")


def test_retry_after_says_when_what_waits_now_will_have_started() -> None:
    clock = Clock()
    of = Places(lambda: 4, 1.0, {}, clock)
    unknown = [of.take("a", 1, 1) for _ in range(8)]
    assert refused(of, "a").headers["retry-after"] == "1"
    for place in unknown[:4]:  # four in eight seconds
        clock.now += 2
        place.leave()
        of.take("a", 1, 1)
    caught = refused(of, "a")
    assert caught.headers["retry-after"] == "6"  # four wait; six seconds since the first ended
    assert "6 seconds" in caught.refusal.message


def test_fewer_engines_let_requests_that_were_wide_for_more_through() -> None:
    total = 8
    of = Places(lambda: total, 1.0, {})
    first, second = of.take("a", 8, 1), of.take("a", 8, 1)
    total = 2
    first.leave()
    assert second.runs


def test_what_waits_is_started_in_its_order() -> None:
    of = places(1, queue=5)
    taken = [of.take("a", 1, 1) for _ in range(5)]
    for one, other in itertools.pairwise(taken):
        assert one.runs
        assert not other.runs
        one.leave()


def test_the_metrics_show_who_runs_and_who_waits() -> None:
    def shown(ensemble: str) -> list[float]:
        states = ("running", "queued")
        return [total(read(), "choir_sequences", ensemble=ensemble, state=each) for each in states]

    of = places(3)
    first, second, other = of.take("a", 3, 1), of.take("a", 3, 1), of.take("b", 2, 1)
    assert (shown("a"), shown("b")) == ([3, 3], [0, 2])
    first.leave()
    assert (shown("a"), shown("b")) == ([0, 3], [2, 0])
    other.leave()
    assert (shown("a"), shown("b")) == ([3, 0], [0, 0])
    second.leave()
    assert (shown("a"), shown("b")) == ([0, 0], [0, 0])


def read() -> dict[Sample, float]:
    board = MetricsBoard()
    board.push("gateway", 0, "one", families())
    return parse(board.render())

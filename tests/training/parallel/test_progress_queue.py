"""Progress reports of workers: they are not frequent, and the last step is always sent."""

from typing import Any

import pytest

from training.parallel import progress_queue
from training.parallel.progress_queue import ProgressSender


class Sent:
    """A queue that keeps everything."""

    def __init__(self) -> None:
        self.all: list[tuple[str, tuple[Any, ...]]] = []

    def put_nowait(self, report: tuple[str, tuple[Any, ...]]) -> None:
        self.all.append(report)

    def reached(self, title: str) -> list[int]:
        return [said[1] for report, said in self.all if report == "reach" and said[0] == title]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(progress_queue.time, "monotonic", lambda: now[0])
    return now


@pytest.mark.usefixtures("clock")
def test_the_last_step_is_sent_however_soon_it_follows() -> None:
    sent = Sent()
    reports = ProgressSender(sent)
    reports.begin("topics/a", 40)
    for step in range(1, 39):
        reports.reach("topics/a", step, 0.5 if step == 20 else None)
    assert sent.reached("topics/a") == [1, 20]
    # If training stops early, its last step is not known before.
    reports.flush()
    assert sent.reached("topics/a") == [1, 20, 38]
    reports.reach("topics/a", 40)
    reports.end("topics/a")
    reports.flush()
    assert sent.reached("topics/a") == [1, 20, 38, 40]
    assert sent.all[-1] == ("end", ("topics/a",))


def test_each_piece_of_work_is_reported_on_in_its_own_time(clock: list[float]) -> None:
    sent = Sent()
    reports = ProgressSender(sent)
    for title in ("topics/a", "topics/a: teacher"):
        reports.begin(title, 9)
        reports.reach(title, 1)
        reports.reach(title, 2)
        assert sent.reached(title) == [1]
    clock[0] += progress_queue.EVERY_SECONDS
    reports.reach("topics/a", 3)
    assert sent.reached("topics/a") == [1, 3]
    assert sent.reached("topics/a: teacher") == [1]


@pytest.mark.usefixtures("clock")
def test_restarted_work_forgets_its_earlier_steps() -> None:
    sent = Sent()
    reports = ProgressSender(sent)
    reports.begin("topics/a", 9)
    reports.reach("topics/a", 7)
    reports.reach("topics/a", 8)
    reports.begin("topics/a", 9, 4)
    reports.flush()
    assert sent.all[-1] == ("begin", ("topics/a", 9, 4))

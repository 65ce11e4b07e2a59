"""The real leases and agents with the real controller, its store and its database, under random interleavings."""

import asyncio
from collections import Counter
from pathlib import Path

import pytest

from serve.agents import demands
from tests.serve.agents.interleaving import Interleaving

AT_ONCE = 8


async def run(folder: Path, seeds: range, steps: int) -> Counter[str]:
    """What happened in the programs of all seeds."""
    seen: Counter[str] = Counter()
    places = asyncio.Semaphore(AT_ONCE)

    async def one(seed: int) -> None:
        async with places:
            home = folder / f"{seed}"
            home.mkdir()
            try:
                seen.update(await Interleaving(home, seed, steps).run())
            except BaseException as error:
                error.add_note(f"seed {seed}")
                raise

    async with asyncio.TaskGroup() as group:
        for seed in seeds:
            group.create_task(one(seed))
    return seen


@pytest.fixture(autouse=True)
def _what_failed_is_tried_again_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demands, "RETRY_SECONDS", 0.05)


COMMON = (
    *("stable", "long answers", "checked", "done", "aborted", "refused"),
    *("late", "late engines", "gateways", "restarts"),
)
RARE = ("canary", "waited for", "rolled back", "lacked")


async def test_random_interleavings(tmp_path: Path) -> None:
    seen = await run(tmp_path, range(16), steps=60)
    assert min(seen[name] for name in COMMON) > 0, seen


@pytest.mark.soak
@pytest.mark.timeout(3600)
async def test_many_random_interleavings(tmp_path: Path) -> None:
    seen = await run(tmp_path, range(1000, 2000), steps=80)
    print(f"\n{dict(sorted(seen.items()))}")
    assert min(seen[name] for name in COMMON + RARE) > 20, seen

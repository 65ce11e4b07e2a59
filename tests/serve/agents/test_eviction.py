"""Which versions leave an engine."""

import random
from itertools import chain, combinations

from serve.agents.eviction import fewest_evictions
from serve.protocol.capacity import Capacity


def test_the_evictions_are_enough_and_none_is_in_vain() -> None:
    """Compared with all subsets, on random engines whose versions share LoRAs."""
    rng = random.Random(0)
    evicted = 0
    for _ in range(2000):
        loras = "abcdefgh"[: rng.randint(2, 8)]
        held = {
            f"e{number}@1": set(rng.choices(loras, k=rng.randint(1, 3)))
            for number in range(rng.randint(0, 5))
        }
        evictable = [key for key in held if rng.random() < 0.7]
        needed, most = set(rng.choices(loras, k=rng.randint(1, 3))), rng.randint(1, 6)

        def fits(
            gone: tuple[str, ...],
            held: dict[str, set[str]] = held,
            needed: set[str] = needed,
            most: int = most,
        ) -> bool:
            staying = [lora for key, loras in held.items() if key not in gone for lora in loras]
            return len({*needed, *staying}) <= most

        sizes = range(len(evictable) + 1)
        enough = [
            gone
            for gone in chain.from_iterable(combinations(evictable, size) for size in sizes)
            if fits(gone)
        ]
        found = fewest_evictions(needed, held, evictable, Capacity(most))
        evicted += bool(found)
        if not enough or () in enough:
            assert found == []
        else:
            assert tuple(found) in enough
            assert not any(set(gone) < set(found) for gone in enough)
    assert evicted > 100

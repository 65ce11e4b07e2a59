"""Threads for what blocks, by kind: work that takes long never holds up work that does not."""

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Literal, ParamSpec, TypeAlias, TypeVar

Kind: TypeAlias = Literal["fetch", "check", "write", "read"]
P = ParamSpec("P")
T = TypeVar("T")

THREADS: Mapping[Kind, int] = {"fetch": 8, "check": 4, "write": 4, "read": 4}
"""How much of each kind is done at once; the rest waits for its turn."""


class Threads:
    """`fetch` copies adapters, for up to half an hour; `check` reads files of the store; `write` and `read` ask the
    database."""

    def __init__(self) -> None:
        self._pools = {
            kind: ThreadPoolExecutor(count, thread_name_prefix=f"choir-{kind}")
            for kind, count in THREADS.items()
        }

    async def run(self, kind: Kind, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What `work` returns or raises. It goes on to its end even if whoever waits for it is cancelled."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._pools[kind], lambda: work(*args, **kwargs))

    def close(self) -> None:
        """Begin nothing more; what runs is not waited for."""
        for pool in self._pools.values():
            pool.shutdown(wait=False, cancel_futures=True)

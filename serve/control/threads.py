"""Threads for blocking work. Each kind of work has its own, so that long work never delays short work."""

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Literal, ParamSpec, TypeAlias, TypeVar

Kind: TypeAlias = Literal["fetch", "check", "write", "read"]
P = ParamSpec("P")
T = TypeVar("T")

THREADS: Mapping[Kind, int] = {"fetch": 8, "check": 4, "write": 4, "read": 4}
"""How many pieces of work of each kind run at once. The others wait."""


class Threads:
    """The kinds: `fetch` copies adapters, for up to half an hour; `check` reads files of the store; `write` and `read`
    use the database."""

    def __init__(self) -> None:
        self._pools = {
            kind: ThreadPoolExecutor(count, thread_name_prefix=f"choir-{kind}")
            for kind, count in THREADS.items()
        }

    async def run(self, kind: Kind, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Return or raise what `work` does. The work runs to its end even if this call is cancelled."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._pools[kind], lambda: work(*args, **kwargs))

    def close(self) -> None:
        """Start no more work. Does not wait for work that runs."""
        for pool in self._pools.values():
            pool.shutdown(wait=False, cancel_futures=True)

"""Adapters inside one engine: each is loaded once, under its digest, however many versions use it."""

import asyncio
import itertools
from dataclasses import dataclass

from vllm.lora.request import LoRARequest
from vllm.v1.engine.async_llm import AsyncLLM

from serve.engine.interface import LoadedAdapter, PrepareError


@dataclass
class _Slot:
    adapter: LoadedAdapter
    request: LoRARequest
    users: int = 0


class AdapterPool:
    """Loads and unloads adapters in vLLM and counts their users.

    vLLM's name for an adapter is its digest and the path is the immutable folder of that digest, because vLLM keys
    its prefix cache by name and path: the same content finds its cache again, other content never does. The id is
    fresh for each load. Since no more adapters are loaded than there are slots, vLLM never evicts one by itself."""

    def __init__(self, llm: AsyncLLM, slots: int) -> None:
        self._llm = llm
        self._slots = slots
        self._loaded: dict[str, _Slot] = {}
        self._ids = itertools.count(1)
        self._changing = asyncio.Lock()

    @property
    def loaded(self) -> tuple[LoadedAdapter, ...]:
        return tuple(slot.adapter for slot in self._loaded.values())

    def request(self, digest: str) -> LoRARequest:
        """What vLLM needs to run a request with a loaded adapter."""
        return self._loaded[digest].request

    async def acquire(self, name: str, digest: str, folder: str) -> None:
        """Load the adapter unless it is, and count one more user.

        Raises PrepareError when vLLM refuses it or all slots are taken."""
        async with self._changing:
            slot = self._loaded.get(digest)
            if slot is None:
                slot = await self._load(name, digest, folder)
                self._loaded[digest] = slot
            slot.users += 1

    async def release(self, digest: str) -> None:
        """Count one user less, and unload the adapter with its last one."""
        async with self._changing:
            slot = self._loaded[digest]
            slot.users -= 1
            if slot.users == 0:
                await self._llm.remove_lora(slot.request.lora_int_id)
                del self._loaded[digest]

    async def _load(self, name: str, digest: str, folder: str) -> _Slot:
        if len(self._loaded) >= self._slots:
            raise PrepareError(
                f"All {self._slots} adapter slots of the engine are taken; release a version or start with a larger "
                "max_loras (--engine '{\"max_loras\": N}')."
            )
        request = LoRARequest(lora_name=digest, lora_int_id=next(self._ids), lora_path=folder)
        try:
            await self._llm.add_lora(request)
        except Exception as error:  # vLLM reports every reason, from a bad file to a bad shape, as its own exception
            raise PrepareError(
                f"vLLM cannot load the adapter {name!r}: {_first_line(error)}"
            ) from error
        return _Slot(LoadedAdapter(name=name, digest=digest, kind="lora"), request)


def _first_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__

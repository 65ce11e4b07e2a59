"""The adapters of one engine. Each is loaded once, under its digest, however many versions use it."""

import asyncio
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vllm.lora.request import LoRARequest
from vllm.v1.engine.async_llm import AsyncLLM

from serve.adapter import (
    LORAS,
    WEIGHTS,
    AdapterError,
    AdapterInfo,
    AdapterKind,
    check_together,
    has_head,
    inspect_adapter,
    invocation_of,
    plain_adapter,
)
from serve.base.folder import BaseError, BaseShapes
from serve.base.vision_language import lora_on_images
from serve.engine.adapters.base_folder import base_folder
from serve.engine.adapters.image_keys import ImageKeys
from serve.engine.adapters.member_adapters import MemberAdapters
from serve.engine.interface import EngineSettings, LoadedAdapter, NoRoomError, PrepareError
from serve.engine.soft.adapter import NO_ROOM, SoftAdapter, SoftKind
from serve.errors import last_line
from serve.manifest import AdapterRef
from serve.prompting.reader import PromptReader
from serve.tensors import TensorFile


@dataclass
class _PooledAdapter:
    adapter: LoadedAdapter
    member_adapters: MemberAdapters
    """What a request with this adapter alone runs with."""
    embeds: bool
    """Whether it is a LoRA that changes the base's token embeddings."""
    users: int = 0
    """How many members of loaded versions use it."""


class AdapterPool:
    """Loads and unloads adapters in vLLM, and counts their users.

    A LoRA's name in vLLM is its digest, and its path is the immutable folder of that digest. vLLM keys its prefix cache
    by name and path, so the same content finds its cache entries again, and other content never does. If an adapter is
    not plain, vLLM reads a plain copy of it; then the entries are lost when it is unloaded. The id is new for each
    load.

    The pool loads no more LoRAs than vLLM keeps in host memory. Otherwise vLLM would evict some of them, and read them
    from disk again in the middle of a request. So vLLM only copies LoRAs from host memory into its slots.

    Prefix and prompt adapters take no slot. They lie in the host memory of each worker, which keeps a limit
    (`soft/store.py`)."""

    def __init__(self, llm: AsyncLLM, settings: EngineSettings, reader: PromptReader) -> None:
        self._llm = llm
        self.reader = reader
        """Reads texts with the base's tokenizer."""
        self._settings = settings
        self._capacity = settings.host_adapters or settings.adapter_slots
        """How many LoRAs vLLM keeps in host memory."""
        self._image_keys = ImageKeys(llm)
        self._folder = base_folder(settings)
        self._base: BaseShapes | None = None
        """The shapes in that folder; read when the first adapter is compared with them."""
        self._loaded: dict[str, _PooledAdapter] = {}
        self._ids = itertools.count(1)
        self._changing = asyncio.Lock()

    @property
    def loaded(self) -> tuple[LoadedAdapter, ...]:
        """The adapters that are loaded now."""
        return tuple(each.adapter for each in self._loaded.values())

    def member_adapters(self, references: Sequence[AdapterRef]) -> MemberAdapters:
        """Returns what a member with these loaded adapters runs with.

        Raises AdapterError if the adapters cannot be used together."""
        alone = [self._loaded[reference.digest] for reference in references]
        check_together([each.adapter.kind for each in alone])
        own = [each.member_adapters for each in alone]
        return MemberAdapters(
            lora=next((each.lora for each in own if each.lora), None),
            soft=next((each.soft for each in own if each.soft), None),
            invocation=next((each.invocation for each in own if each.invocation), None),
        )

    def alone(self, digest: str) -> MemberAdapters:
        """Returns what a request with this loaded adapter alone runs with."""
        return self._loaded[digest].member_adapters

    async def acquire(self, name: str, digest: str, folder: str) -> None:
        """Loads the adapter unless it is loaded already, and counts one more user.

        Raises PrepareError if the adapter cannot be loaded, and NoRoomError if there is no room for it."""
        async with self._changing:
            loaded = self._loaded.get(digest)
            if loaded is None:
                loaded = await self._load(name, digest, folder)
                self._loaded[digest] = loaded
            loaded.users += 1

    async def release(self, digest: str) -> None:
        """Counts one user less, and unloads the adapter when none is left."""
        async with self._changing:
            loaded = self._loaded[digest]
            loaded.users -= 1
            if loaded.users == 0:
                lora = loaded.member_adapters.lora
                if lora is not None:
                    await self._llm.remove_lora(lora.lora_int_id)
                else:
                    await self._llm.collective_rpc("unload_soft", args=(digest,))
                del self._loaded[digest]

    async def _load(self, name: str, digest: str, folder: str) -> _PooledAdapter:
        path = Path(folder)
        try:
            kind = (await asyncio.to_thread(self._inspect, path)).kind
        except AdapterError as error:
            raise PrepareError(f"The adapter {name!r} cannot be loaded: {error}") from error
        embeds = kind in LORAS and _changes_embeddings(path)
        self._check_embeddings(name, kind, embeds)
        if kind == "lora" or kind == "alora":
            tokens = invocation_of(path)
            member_adapters = MemberAdapters(
                lora=await self._load_lora(name, digest, folder, kind),
                invocation=self.reader.invocation(tokens) if tokens else None,
            )
        else:
            member_adapters = MemberAdapters(soft=await self._load_soft(name, digest, kind, folder))
        return _PooledAdapter(
            LoadedAdapter(name=name, digest=digest, kind=kind), member_adapters, embeds
        )

    def base_shapes(self) -> BaseShapes | None:
        """Returns the shapes of the base's weights; None if the base is not on this machine. Raises AdapterError if it
        cannot be read, so that no adapter can be checked."""
        if self._base is None and self._folder is not None:
            try:
                self._base = BaseShapes.read(self._folder)
            except BaseError as error:
                raise AdapterError(str(error)) from error
        return self._base

    def _inspect(self, folder: Path) -> AdapterInfo:
        """Repeats the checks of the admission, now with the base at hand. Raises AdapterError."""
        return inspect_adapter(
            folder,
            base=self.base_shapes(),
            max_rank=self._settings.max_lora_rank,
            base_kind=self._settings.kind,
            # Whoever needs a head reads it, and an adapter without one serves ensembles with prompts.
            head_rows=None if has_head(folder) else 0,
        )

    async def _load_lora(
        self, name: str, digest: str, folder: str, kind: AdapterKind
    ) -> LoRARequest:
        if sum(each.adapter.kind in LORAS for each in self._loaded.values()) >= self._capacity:
            raise NoRoomError(
                f"All {self._capacity} adapter slots of the engine are taken; release a version or start with a larger "
                "max_loras (--engine '{\"max_loras\": N}') or host_adapters."
            )
        try:
            with plain_adapter(Path(folder), self._base, self._settings.kind) as plain:
                request = LoRARequest(
                    lora_name=digest, lora_int_id=next(self._ids), lora_path=str(plain)
                )
                await self._llm.add_lora(request)
        except (
            Exception
        ) as error:  # vLLM raises many types of exceptions, from a bad file to a bad shape
            raise PrepareError(
                f"vLLM cannot load the adapter {name!r}: {last_line(error)}"
            ) from error
        await self._check_applied(name, request)
        await self._note_images(name, request, kind)
        return request

    async def _note_images(self, name: str, lora: LoRARequest, kind: AdapterKind) -> None:
        """Notes whether the LoRA changes what reads images. Unloads an activated one that does and raises PrepareError:
        images stand before its invocation, where it must not act."""
        changes = any(await self._llm.collective_rpc("changes_images", args=(lora.lora_int_id,)))
        if changes and kind == "alora":
            await self._llm.remove_lora(lora.lora_int_id)
            raise PrepareError(
                f"The adapter {name!r} cannot be loaded: it is an activated LoRA, and changes what reads images, "
                "which stand before its invocation; train it on the language model alone."
            )
        self._image_keys.note(lora.lora_name, changes_images=changes)

    async def _check_applied(self, name: str, lora: LoRARequest) -> None:
        """Unloads the adapter and raises PrepareError if vLLM has ignored some of its modules, which it does
        silently."""
        left = await self._llm.collective_rpc("modules_left_out", args=(lora.lora_int_id,))
        everywhere = set(left[0]).intersection(*left[1:])
        if everywhere:
            await self._llm.remove_lora(lora.lora_int_id)
            raise PrepareError(
                f"The adapter {name!r} cannot be loaded: vLLM's model of the base has no module {min(everywhere)!r} "
                f"that takes LoRA; {self._advice()}."
            )

    def _advice(self) -> str:
        """Returns what to do about a module that takes no LoRA."""
        possible = self._base is not None and lora_on_images(self._base.config)
        lora = self._llm.vllm_config.lora_config
        if possible and lora is not None and not lora.enable_tower_connector_lora:
            return (
                "if it reads images, start with --engine '{\"enable_tower_connector_lora\": true}', else train without "
                "it"
            )
        return "train without it"

    async def _load_soft(self, name: str, digest: str, kind: SoftKind, folder: str) -> SoftAdapter:
        answers = await self._llm.collective_rpc("load_soft", args=(digest, kind, folder))
        refusals = [each for each in answers if isinstance(each, str)]
        if refusals:
            await self._llm.collective_rpc("unload_soft", args=(digest,))
            reason = f"The adapter {name!r} cannot be loaded: {refusals[0]}"
            full = all(each.startswith(NO_ROOM) for each in refusals)
            raise NoRoomError(reason) if full else PrepareError(reason)
        return SoftAdapter(kind, digest, int(answers[0]))

    def _check_embeddings(self, name: str, kind: AdapterKind, embeds: bool) -> None:
        """Raises PrepareError if a prompt adapter and a LoRA on token embeddings would be in the engine together.

        With prompt adapters, vLLM looks up the embeddings of some rows only, and would apply the LoRA to wrong rows."""
        others = self._loaded.values()
        if (kind == "prompt" and any(each.embeds for each in others)) or (
            embeds and any(each.adapter.kind == "prompt" for each in others)
        ):
            raise PrepareError(
                f"The adapter {name!r} cannot be loaded: a prompt adapter and a LoRA that changes the token embeddings "
                "cannot be in one engine at once; train the LoRA without embed_tokens, or use a prefix adapter."
            )


def _changes_embeddings(folder: Path) -> bool:
    return any("lora_embedding_" in tensor for tensor in TensorFile(folder / WEIGHTS).tensors)

"""Small real files, and the one thing that is faked: vLLM, at the `Engine` protocol, its narrowest edge."""

import asyncio
import hashlib
import inspect
import json
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from serve.adapter import adapter_kind
from serve.bundle import BaseSpec, Bundle
from serve.control.controller import Controller
from serve.engine.interface import (
    VERSION_NOT_LOADED,
    EmbedCall,
    Embeddings,
    EngineState,
    GenerateCall,
    LoadedAdapter,
    NoRoomError,
    PredictCall,
    Prediction,
    PrepareError,
    Probe,
    Version,
)
from serve.errors import Refusal
from serve.fusion.fused import Fused
from serve.manifest import Ensemble, FusionSpec, Member
from serve.protocol.messages import Desired, StatusReport

HIDDEN = 8
LABELS = ["yes", "no"]
PATIENCE = 60
"""Seconds after which a condition that does not come true fails a test."""


def make_base(folder: Path) -> Path:
    folder.mkdir(parents=True)
    config = {"architectures": ["LlamaForCausalLM"], "hidden_size": HIDDEN}
    (folder / "config.json").write_text(json.dumps(config))
    weight = np.zeros((HIDDEN, HIDDEN), dtype=np.float32)
    save_file({"model.layers.0.self_attn.q_proj.weight": weight}, folder / "model.safetensors")
    return folder


def make_adapter(folder: Path, seed: int, *, rank: int = 2, hidden: int = HIDDEN) -> Path:
    """A LoRA in PEFT's format whose content follows from the seed."""
    folder.mkdir(parents=True)
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    rng = np.random.default_rng(seed)
    prefix = "base_model.model.model.layers.0.self_attn.q_proj"
    tensors = {
        f"{prefix}.lora_A.weight": rng.normal(size=(rank, hidden)).astype(np.float32),
        f"{prefix}.lora_B.weight": rng.normal(size=(hidden, rank)).astype(np.float32),
    }
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def make_prompt_adapter(folder: Path, seed: int, *, hidden: int = HIDDEN) -> Path:
    """A prompt adapter in PEFT's format whose content follows from the seed."""
    folder.mkdir(parents=True)
    config = {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 3, "token_dim": hidden}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    rows = np.random.default_rng(seed).normal(size=(3, hidden)).astype(np.float32)
    save_file({"prompt_embeddings": rows}, folder / "adapter_model.safetensors")
    return folder


def make_bundle(
    folder: Path,
    *names: str,
    members: int = 2,
    seed: int = 0,
    adapter: Callable[[Path, int], Path] = make_adapter,
) -> Bundle:
    """A bundle with version 1 of an ensemble for each name; every member has content of its own."""
    base = folder.parent / "base"
    if not base.exists():
        make_base(base)
    bundle = Bundle.create(folder, BaseSpec(path=str(base)))
    for name in names or ("intents",):
        refs = []
        for member in "abcdef"[:members]:
            seed += 1
            source = adapter(folder.parent / f"{folder.name}-{name}-{member}", seed)
            refs.append((member, bundle.add_adapter(f"{name}-{member}", source)))
        bundle.write_ensemble(
            Ensemble(
                format=1,
                name=name,
                version=1,
                task="classification",
                members=[Member(name=member, adapters=[ref]) for member, ref in refs],
                fusion=FusionSpec(method="average"),
                labels=LABELS,
            )
        )
    return bundle


class FakeEngine:
    """Holds versions as the protocol says, and refuses what a real engine would: more adapters than
    slots, and requests for versions that it does not hold."""

    def __init__(self, slots: int = 5) -> None:
        self.slots = slots
        self.soft_room = 100
        """How many distinct prefix and prompt adapters it takes."""
        self.held: dict[str, Version] = {}
        self.prepared: list[str] = []
        self.most_adapters = 0
        self.broken: dict[str, str] = {}
        """`name@version` -> why it cannot be loaded here."""
        self.probe_of: Callable[[str], Probe] = fixed_probe
        self.answers: dict[str, str] = {}
        """Text -> the label that it is answered with; the first label without an entry."""
        self.refusal: Refusal | None = None
        self.calls: list[PredictCall] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self._in_flight: dict[str, int] = {}
        self._idle = asyncio.Event()

    async def prepare(self, version: Version) -> tuple[Probe, ...]:
        self.prepared.append(version.key)
        await self.gate.wait()
        if version.key in self.broken:
            raise PrepareError(self.broken[version.key])
        if len(self._loras(version)) > self.slots:
            raise NoRoomError(f"all {self.slots} adapter slots are taken")
        if len(self._adapters(version).keys() - self._loras(version)) > self.soft_room:
            raise NoRoomError("prefix and prompt adapters take all memory")
        self.held[version.key] = version
        self.most_adapters = max(self.most_adapters, len(self._loras()))
        return tuple(map(self.probe_of, version.ensemble.digests))

    async def answer(self, key: str) -> Version | None:
        """What a request stamped with `key` runs on; None if that is not loaded."""
        version = self.held.get(key)
        if version is None or key in self._releasing:
            return None
        self._in_flight[key] = self._in_flight.get(key, 0) + 1
        try:
            await asyncio.sleep(0)
            assert key in self.held, "a version was unloaded under a running request"
            return version
        finally:
            self._in_flight[key] -= 1
            self._idle.set()

    _releasing: frozenset[str] = frozenset()

    async def release(self, key: str) -> None:
        self._releasing |= {key}
        while self._in_flight.get(key):
            self._idle.clear()
            await self._idle.wait()
        self.held.pop(key, None)
        self._releasing -= {key}

    def hold_request(self, key: str) -> Callable[[], None]:
        """A long answer runs on `key` until the function that comes back is called."""
        self._in_flight[key] = self._in_flight.get(key, 0) + 1

        def end() -> None:
            self._in_flight[key] -= 1
            self._idle.set()

        return end

    def state(self) -> EngineState:
        return EngineState(
            versions={key: self._in_flight.get(key, 0) for key in self.held},
            adapters=tuple(LoadedAdapter("x", digest, "lora") for digest in self._digests()),
            adapter_slots=self.slots,
            host_adapters=self.slots,
            max_lora_rank=64,
        )

    def _digests(self) -> set[str]:
        return {digest for version in self.held.values() for digest in version.ensemble.digests}

    def _loras(self, *more: Version) -> set[str]:
        adapters = self._adapters(*more).items()
        return {digest for digest, folder in adapters if adapter_kind(Path(folder)) == "lora"}

    def _adapters(self, *more: Version) -> dict[str, str]:
        versions = (*self.held.values(), *more)
        return {digest: f for version in versions for digest, f in version.adapters.items()}

    async def predict(self, call: PredictCall) -> Prediction | Refusal:
        self.calls.append(call)
        version = self.held.get(call.version)
        if version is None:
            return Refusal(503, f"{call.version} is not loaded", code=VERSION_NOT_LOADED)
        if self.refusal is not None:
            return self.refusal
        labels = [*(version.ensemble.labels or ()), *self.answers.values()]
        winners = [labels.index(self.answers.get(text.text, labels[0])) for text in call.inputs]
        probabilities = np.eye(len(labels))[winners]
        zeros = np.zeros(len(winners))
        return Prediction(
            version=call.version,
            labels=tuple(labels),
            answers=Fused(probabilities, zeros, zeros, np.array(winners)),
            members=tuple(version.ensemble.members),
            member_answers=None,
            prompt_tokens=1,
            member_tokens=2,
        )

    async def embed(self, call: EmbedCall) -> Embeddings | Refusal:
        raise NotImplementedError

    def generate(self, call: GenerateCall) -> AsyncGenerator[bytes | Refusal, None]:
        raise NotImplementedError

    async def close(self) -> None:
        raise NotImplementedError


def fixed_probe(digest: str) -> Probe:
    """The same on every engine, another one for every content."""
    number = int(hashlib.sha256(digest.encode()).hexdigest()[:4], 16)
    return Probe(digest, (-number / 1000, -1.0), change=0.5)


class Link:
    """The way to whichever controller runs now. It fails while there is none, and for whoever is cut
    off."""

    def __init__(self) -> None:
        self.controller: Controller | None = None
        self.cut_off: set[str] = set()
        self.calls: set[asyncio.Task[Desired]] = set()

    def of(self, name: str) -> "NamedLink":
        return NamedLink(self, name)

    def lose_controller(self) -> None:
        """Calls that wait for its answer fail at once, as they do when a process dies."""
        self.controller = None
        for call in self.calls:
            call.cancel()


class NamedLink:
    """One participant's end."""

    def __init__(self, link: Link, name: str) -> None:
        self._link = link
        self._name = name

    async def sync(self, report: StatusReport) -> Desired:
        call = asyncio.create_task(self._reach().sync(report))
        self._link.calls.add(call)
        try:
            await asyncio.wait({call})
            self._reach()
            return call.result()
        finally:
            call.cancel()
            self._link.calls.discard(call)

    def _reach(self) -> Controller:
        if self._link.controller is None or self._name in self._link.cut_off:
            raise ConnectionError("the controller cannot be reached")
        return self._link.controller


async def until(condition: Callable[[], Any]) -> None:
    """Wait for a condition, asynchronous or not; the test fails if it never comes true."""
    async with asyncio.timeout(PATIENCE):
        # What is waited for rings no bell.
        while not await _met(condition):  # noqa: ASYNC110
            await asyncio.sleep(0.002)


async def _met(condition: Callable[[], Any]) -> Any:
    met = condition()
    return await met if inspect.isawaitable(met) else met

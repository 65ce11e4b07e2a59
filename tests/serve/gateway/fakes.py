"""Fakes of everything around the gateway: its two links, and its connection to the controller.

The gateway's routes are a real `GatewayAgent` that pulls from a `FakeController`."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import uvicorn
from starlette.types import ASGIApp

from serve.engine.interface import (
    VERSION_NOT_LOADED,
    EmbedCall,
    Embeddings,
    GenerateCall,
    PredictCall,
    Prediction,
    Version,
)
from serve.errors import Refusal
from serve.fusion.fused import Fused
from serve.manifest import Ensemble
from serve.protocol.audit import AuditEntry
from serve.protocol.messages import AssignedVersion, Desired, Role, StatusReport
from serve.protocol.pruning import PruneRequest, PruneView
from serve.protocol.requests import SwapRequest
from serve.protocol.views import EnsembleView, RolloutView

LABELS = ("card_lost", "card_late", "top_up")
DIGESTS = {name: f"sha256:{name * 64}" for name in ("a", "b")}


def ensemble(name: str = "intents", version: int = 3, task: str = "classification") -> Ensemble:
    return Ensemble.model_validate(
        {
            "format": 1,
            "name": name,
            "version": version,
            "task": task,
            "members": [
                {"name": each, "adapters": [{"adapter": f"{name}-{each}", "digest": digest}]}
                for each, digest in DIGESTS.items()
            ],
            "fusion": {"method": "average" if task == "classification" else "vote"},
            "labels": list(LABELS) if task == "classification" else None,
        }
    )


def held(of: Ensemble, role: Role = "active") -> AssignedVersion:
    return AssignedVersion(Version(of, {}), role)


def desired(*versions: AssignedVersion, ready_engines: int = 1, lease: float = 60) -> Desired:
    return Desired(1, lease, versions, {"": ready_engines})


class FakeController:
    """Answers a lease as the controller does: at once if there is news, else when there is."""

    def __init__(self, first: Desired) -> None:
        self._desired = first
        self._changed = asyncio.Condition()

    async def sync(self, report: StatusReport) -> Desired:
        async with self._changed:
            await self._changed.wait_for(
                lambda: report.urgent or report.seen_revision != self._desired.revision
            )
        return self._desired

    def will_say(self, new: Desired) -> None:
        """Set the answer to the next report, without waking a report that waits."""
        self._desired = replace(new, revision=self._desired.revision + 1)


class FakeEngines:
    """Answers every call with fixed numbers, or as the test has set."""

    def __init__(self) -> None:
        self.calls: list[PredictCall | EmbedCall | GenerateCall] = []
        self.loaded: set[str] | None = None
        """The versions that are loaded; None: all."""
        self.lacking = 0
        """The number of further calls that are told that their version is not loaded."""
        self.refusals: dict[str, Refusal] = {}
        """By version."""
        self.refusal: Refusal | None = None
        self.prediction: Callable[[PredictCall], Prediction] = prediction
        self.error: Exception | None = None
        self.errors: list[Exception] = []
        """Exceptions that the next calls raise, one each, before anything else."""
        self.stuck: asyncio.Event | None = None
        """Set when a call has arrived. If it is not None, calls are never answered."""
        self.ended = asyncio.Event()
        """Set when the work of a call has ended, for whatever reason."""
        self.parts: Callable[[], AsyncIterator[bytes]] = _two_parts

    async def predict(self, call: PredictCall) -> Prediction | Refusal:
        try:
            return await self._refusal(call) or self.prediction(call)
        finally:
            self.ended.set()

    async def embed(self, call: EmbedCall) -> Embeddings | Refusal:
        """Input i has the vector (i, 0.5)."""
        try:
            vectors = np.array([[i, 0.5] for i in range(len(call.inputs))], dtype=np.float32)
            return await self._refusal(call) or Embeddings(vectors, 7)
        finally:
            self.ended.set()

    async def generate(self, call: GenerateCall) -> AsyncGenerator[bytes | Refusal, None]:
        try:
            refusal = await self._refusal(call)
            if refusal is not None:
                yield refusal
                return
            async for part in self.parts():
                yield part
        finally:
            self.ended.set()

    async def _refusal(self, call: PredictCall | EmbedCall | GenerateCall) -> Refusal | None:
        self.calls.append(call)
        if self.stuck is not None:
            self.stuck.set()
            await asyncio.Event().wait()
        if self.errors:
            raise self.errors.pop(0)
        if self.error is not None:
            raise self.error
        self.lacking -= 1
        lacks = self.loaded is not None and call.version not in self.loaded
        if lacks or self.lacking >= 0:
            return Refusal(503, f"{call.version} is not here", code=VERSION_NOT_LOADED)
        return self.refusals.get(call.version, self.refusal)


async def _two_parts() -> AsyncIterator[bytes]:
    yield b'{"object": '
    yield b'"text_completion"}'


def prediction(call: PredictCall) -> Prediction:
    """Member b prefers another label than member a, and every input shifts the numbers a little."""
    rows = np.arange(len(call.inputs)) / 10_000
    members = np.array(
        [
            [[0.8 - shift, 0.1 + shift, 0.1] for shift in rows],
            [[0.1, 0.6 - shift, 0.3 + shift] for shift in rows],
        ]
    )
    return Prediction(
        version=call.version,
        labels=LABELS,
        answers=_labels(members.mean(0), 0.5, 0.1),
        members=tuple(ensemble().members),
        member_answers=tuple(map(_labels, members)) if call.return_members else None,
        prompt_tokens=7,
        member_tokens=21,
        computed_tokens=12,
    )


def _labels(probabilities: np.ndarray, entropy: float = 0, disagreement: float = 0) -> Fused:
    rows = len(probabilities)
    return Fused(
        probabilities,
        np.linspace(entropy, entropy + 0.1, rows),
        np.linspace(disagreement, disagreement + 0.1, rows),
        probabilities.argmax(1),
    )


class FakeControl:
    """Answers the calls of administrators as a controller does."""

    def __init__(self) -> None:
        self.asked: list[tuple[Any, ...]] = []
        self.refusal: Refusal | None = None
        self.error: Exception | None = None
        self.listed: list[EnsembleView] = []
        """All ensembles, by name."""

    def _answer(self, answer: Any, *asked: Any) -> Any:
        self.asked.append(asked)
        if self.error is not None:
            raise self.error
        return self.refusal or answer

    async def swap(
        self, name: str, request: SwapRequest, actor: str, wait: bool
    ) -> RolloutView | Refusal:
        answer: RolloutView | Refusal = self._answer(ROLLOUT, "swap", name, request, actor, wait)
        return answer

    async def make(self, name: str, actor: str) -> EnsembleView | Refusal:
        answer: EnsembleView | Refusal = self._answer(
            Refusal(400, "Nothing is made here."), "make", name, actor
        )
        return answer

    async def rollback(
        self, name: str, to: int | None, actor: str, wait: bool
    ) -> RolloutView | Refusal:
        answer: RolloutView | Refusal = self._answer(ROLLOUT, "rollback", name, to, actor, wait)
        return answer

    async def promote(self, rollout_id: str, actor: str, wait: bool) -> RolloutView | Refusal:
        answer: RolloutView | Refusal = self._answer(ROLLOUT, "promote", rollout_id, actor, wait)
        return answer

    async def abort(self, rollout_id: str, actor: str) -> RolloutView | Refusal:
        answer: RolloutView | Refusal = self._answer(ROLLOUT, "abort", rollout_id, actor)
        return answer

    async def prune(self, request: PruneRequest, actor: str) -> PruneView | Refusal:
        answer: PruneView | Refusal = self._answer(PRUNED, "prune", request, actor)
        return answer

    async def rollouts(self) -> Sequence[RolloutView] | Refusal:
        answer: Sequence[RolloutView] | Refusal = self._answer([ROLLOUT], "rollouts")
        return answer

    async def rollout(self, rollout_id: str) -> RolloutView | Refusal:
        answer: RolloutView | Refusal = self._answer(ROLLOUT, "rollout", rollout_id)
        return answer

    async def audit(self) -> Sequence[AuditEntry] | Refusal:
        answer: Sequence[AuditEntry] | Refusal = self._answer([AUDIT], "audit")
        return answer

    async def ensembles(
        self, limit: int | None = None, after: str | None = None
    ) -> Sequence[EnsembleView]:
        found: Sequence[EnsembleView] = self._answer(self.listed, "ensembles", limit, after)
        return [each for each in found if after is None or each.name > after][:limit]

    async def ensemble(self, name: str) -> EnsembleView | Refusal:
        answer: EnsembleView | Refusal = self._answer(
            Refusal(404, f"There is no ensemble {name}."), "ensemble", name
        )
        return answer

    async def report(self, name: str) -> bytes | Refusal:
        answer: bytes | Refusal = self._answer(b"<!doctype html><p>report</p>", "report", name)
        return answer

    async def metrics(self) -> bytes:
        answer: bytes = self._answer(b"choir_active_version 3.0\n", "metrics")
        return answer


AUDIT = AuditEntry.model_validate(
    {
        "at": "2026-01-01T00:00:00Z",
        "actor": "eve, from 127.0.0.1",
        "action": "swap",
        "ensemble": "intents",
        "from": 3,
        "to": None,
        "outcome": "refused",
        "reason": "no room",
    }
)

PRUNED = PruneView.model_validate(
    {
        "dry_run": True,
        "versions": [{"ensemble": "intents", "version": 1, "created": "2026-01-01T00:00:00Z"}],
        "adapters": [{"digest": DIGESTS["a"], "bytes": 5}],
        "parameters": [],
        "waiting": [],
    }
)

ROLLOUT = RolloutView.model_validate(
    {
        "id": "r1",
        "ensemble": "intents",
        "state": "done",
        "from": 2,
        "to": 3,
        "strategy": "immediate",
        "action": "swap",
        "actor": "admin",
        "replicas": {"engine/0": "prepared"},
        "created": "2026-01-01T00:00:00Z",
        "updated": "2026-01-01T00:00:01Z",
    }
)


@contextlib.asynccontextmanager
async def listening(app: ASGIApp) -> AsyncIterator[str]:
    """Serve the application on a real socket, and yield its address."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        # Uvicorn's own log settings would close every handler of this process, and with them what pytest captures.
        config = uvicorn.Config(app, log_config=None, lifespan="off")
        server = uvicorn.Server(config)
        serving = asyncio.create_task(server.serve([listener]))
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            await serving

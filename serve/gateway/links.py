"""What the gateway asks of engines and of the controller, as two small protocols.

`serve/graph/ray_links.py` implements them over Ray Serve's handles."""

from collections.abc import AsyncGenerator, Sequence
from typing import Protocol

from serve.engine.interface import GenerateCall, PredictCall, Prediction
from serve.protocol.audit import AuditEntry
from serve.protocol.requests import SwapRequest
from serve.protocol.views import EnsembleView, RolloutView
from serve.refusal import Refusal


class Unavailable(Exception):
    """Engines or the controller cannot be reached now; the message says so to the client (503)."""

    def __init__(self, message: str, *, begun: bool = True) -> None:
        """`begun`: whether somebody may have begun to work on the call, so that the call may be what ended it."""
        super().__init__(message)
        self.begun = begun


class EngineLink(Protocol):
    """The way to some engine."""

    async def predict(self, call: PredictCall) -> Prediction | Refusal:
        """Raises Unavailable."""
        ...

    def generate(self, call: GenerateCall) -> AsyncGenerator[bytes | Refusal, None]:
        """The parts of the answer as they come; a refusal is the last one. Closing it ends the work
        in the engine. Raises Unavailable."""
        ...


class ControlLink(Protocol):
    """The way to the controller. Every method raises Unavailable."""

    async def swap(
        self, name: str, request: SwapRequest, actor: str, wait: bool
    ) -> RolloutView | Refusal:
        """With `wait`, returns when it is committed everywhere, or refused."""
        ...

    async def rollback(
        self, name: str, to: int | None, actor: str, wait: bool
    ) -> RolloutView | Refusal: ...

    async def promote(self, rollout_id: str, actor: str, wait: bool) -> RolloutView | Refusal: ...

    async def abort(self, rollout_id: str, actor: str) -> RolloutView | Refusal:
        """Returns when it is aborted, or refused."""
        ...

    async def rollouts(self) -> Sequence[RolloutView] | Refusal: ...

    async def rollout(self, rollout_id: str) -> RolloutView | Refusal: ...

    async def audit(self) -> Sequence[AuditEntry] | Refusal: ...

    async def ensembles(self) -> Sequence[EnsembleView]: ...

    async def ensemble(self, name: str) -> EnsembleView | Refusal: ...

    async def metrics(self) -> bytes:
        """Prometheus text of all replicas."""
        ...

"""The calls that a gateway makes to engines and to the controller, as two protocols.

`serve/graph/ray_links.py` implements them with Ray Serve's handles."""

from collections.abc import AsyncGenerator, Sequence
from typing import Protocol

from serve.engine.interface import EmbedCall, Embeddings, GenerateCall, PredictCall, Prediction
from serve.errors import Refusal
from serve.protocol.audit import AuditEntry
from serve.protocol.pruning import PruneRequest, PruneView
from serve.protocol.requests import SwapRequest
from serve.protocol.views import EnsembleView, RolloutView


class Unavailable(Exception):
    """An engine or the controller cannot be reached. The client gets the message with status 503."""

    def __init__(self, message: str, *, begun: bool = True) -> None:
        """`begun`: whether an engine may have begun to work on the call, so that the call may have crashed it."""
        super().__init__(message)
        self.begun = begun


class EngineLink(Protocol):
    """Calls to one of the engines; the implementation chooses which."""

    async def predict(self, call: PredictCall) -> Prediction | Refusal:
        """Return the prediction, or the engine's refusal. Raises Unavailable."""
        ...

    async def embed(self, call: EmbedCall) -> Embeddings | Refusal:
        """Return the vectors of the call's inputs, or the engine's refusal. Raises Unavailable."""
        ...

    def generate(self, call: GenerateCall) -> AsyncGenerator[bytes | Refusal, None]:
        """Yield the parts of the answer as they arrive. A refusal is the last part. Closing the generator
        ends the work in the engine. Raises Unavailable."""
        ...


class ControlLink(Protocol):
    """Calls to the controller. Every method raises Unavailable if it cannot be reached."""

    async def swap(
        self, name: str, request: SwapRequest, actor: str, wait: bool
    ) -> RolloutView | Refusal:
        """Start a swap for `actor`, whom the audit names. With `wait`, returns once every replica has
        committed it, or it is refused."""
        ...

    async def make(self, name: str, actor: str) -> EnsembleView | Refusal:
        """Make an ensemble at run time, which cannot be asked until a swap brings its one member's adapter. Returns
        it, or the one of that name that there is."""
        ...

    async def rollback(
        self, name: str, to: int | None, actor: str, wait: bool
    ) -> RolloutView | Refusal: ...

    async def promote(self, rollout_id: str, actor: str, wait: bool) -> RolloutView | Refusal: ...

    async def abort(self, rollout_id: str, actor: str) -> RolloutView | Refusal:
        """Abort a rollout. Returns once it is aborted, or the abort is refused."""
        ...

    async def prune(self, request: PruneRequest, actor: str) -> PruneView | Refusal:
        """Remove what nobody can reach any more, or only say what that is."""
        ...

    async def rollouts(self) -> Sequence[RolloutView] | Refusal: ...

    async def rollout(self, rollout_id: str) -> RolloutView | Refusal: ...

    async def audit(self) -> Sequence[AuditEntry] | Refusal: ...

    async def ensembles(
        self, limit: int | None = None, after: str | None = None
    ) -> Sequence[EnsembleView]:
        """Return ensembles by name: all, or the first `limit` whose names sort behind `after`."""
        ...

    async def ensemble(self, name: str) -> EnsembleView | Refusal: ...

    async def report(self, name: str) -> bytes | Refusal:
        """Return the page of the report in the ensemble's bundle, as HTML."""
        ...

    async def metrics(self) -> bytes:
        """Return the metrics of all replicas in Prometheus' text format."""
        ...

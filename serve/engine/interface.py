"""What an engine promises to the rest of Choir, without a word of vLLM.

Every message here crosses a process boundary (Ray pickles it), so all of them are plain frozen dataclasses. What a
client did wrong comes back as a `Refusal`, never as an exception (see `serve/refusal.py`).
"""

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from serve.adapter import AdapterKind
from serve.fusion.fused import Answers
from serve.manifest import Ensemble, Member
from serve.refusal import Refusal

VERSION_NOT_LOADED = "version_not_loaded"
ENGINE_GONE = "engine_gone"
"""Code of a refusal: the engine was dead when the call came, and has done nothing for it."""
ENGINE_DIED = "engine_died"
"""Code of a refusal: the engine died while it worked on the call."""
MEMBER_FAILED = "member_failed"
"""Code of a refusal: what the version's own members or fitted parameters gave cannot be answered with."""


@dataclass(frozen=True)
class Version:
    """One immutable version of an ensemble and where its verified files lie on this machine."""

    ensemble: Ensemble
    adapters: Mapping[str, str]
    """Digest of each adapter -> its immutable folder in the store."""
    parameters: str | None = None
    """File of the fitted fusion parameters, if the method has any."""
    parameters_digest: str | None = None
    """SHA-256 of that file, which every replica compares."""
    allow_stale_fusion: bool = False

    @property
    def key(self) -> str:
        """`name@version`."""
        return self.ensemble.id


@dataclass(frozen=True)
class Probe:
    """What one adapter answered to the fixed probe input right after it was loaded."""

    digest: str
    outputs: tuple[float, ...]
    """A few numbers (log-probabilities, or values of the pooled vector) that replicas can compare."""
    change: float
    """Largest absolute difference from the plain base's outputs; 0 means that the adapter does nothing."""
    epsilon: float = 0.0
    """The rounding of the type that the engine computes in: the distance from 1 to the next larger number."""


@dataclass(frozen=True)
class EngineSettings:
    """What an engine is started with."""

    model: str
    """Local folder or hub id of the base."""
    kind: Literal["causal", "encoder"]
    adapter_slots: int
    """How many distinct LoRAs can run at once."""
    max_lora_rank: int = 64
    host_adapters: int | None = None
    """How many distinct LoRAs can be loaded at once, at least as many as slots; None: as many."""
    revision: str | None = None
    dtype: str = "auto"
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """vLLM's engine arguments by name, as the user gave them."""


class PrepareError(Exception):
    """A version cannot be loaded; the message says why, for the person who asked for the swap."""


class NoRoomError(PrepareError):
    """A version cannot be loaded beside what is loaded now. Once enough of that is released, it can."""


@dataclass(frozen=True)
class Text:
    """One input of a prediction."""

    text: str
    text_pair: str | None = None


@dataclass(frozen=True)
class PredictCall:
    """One `/v1/predict` request, stamped with the version that must answer it."""

    version: str
    inputs: tuple[Text, ...]
    request_id: str
    member: str | None = None
    """Answer with this member alone."""
    method: str | None = None
    """Fusion method of this request; the manifest's when absent."""
    weights: Mapping[str, float] | None = None
    return_members: bool = False
    trace_headers: Mapping[str, str] | None = None


@dataclass(frozen=True)
class Prediction:
    """The fused answer to N inputs by M members."""

    version: str
    labels: tuple[str, ...]
    """C labels; none for regression."""
    answers: Answers
    members: tuple[Member, ...]
    """The members that answered, in the manifest's order."""
    member_answers: tuple[Answers, ...] | None
    """What each of them answers alone, only when asked for."""
    prompt_tokens: int
    """Tokens of the inputs, counted once."""
    member_tokens: int
    """Tokens that all members together computed or read."""
    absent: tuple[str, ...] = ()
    """Members that could not be loaded and did not answer."""


@dataclass(frozen=True)
class GenerateCall:
    """One OpenAI completion or chat completion, stamped with the version that must answer it."""

    version: str
    route: Literal["completions", "chat"]
    body: Mapping[str, Any]
    """The client's JSON object as sent, less `fusion`."""
    request_id: str
    member: str | None = None
    method: str | None = None
    weights: Mapping[str, float] | None = None
    prompts: Mapping[str, str] | None = None
    """Member -> a prompt of its own: a completion's whole prompt, or the content of a chat's last user message."""
    plausibility: float | None = None
    return_members: bool = False
    trace_headers: Mapping[str, str] | None = None

    @property
    def model(self) -> str:
        """The resolved model name that the answer carries."""
        return f"{self.version}/{self.member}" if self.member else self.version


@dataclass(frozen=True)
class LoadedAdapter:
    name: str
    digest: str
    kind: AdapterKind


@dataclass(frozen=True)
class EngineState:
    """What one engine holds now."""

    versions: Mapping[str, int] = field(default_factory=dict)
    """`name@version` -> requests in flight on it."""
    adapters: tuple[LoadedAdapter, ...] = ()
    adapter_slots: int = 0
    """How many distinct LoRAs can run at once; prefix and prompt adapters take no slot."""
    host_adapters: int = 0
    """How many distinct LoRAs can be loaded at once, those in slots included."""
    max_lora_rank: int = 0


class Engine(Protocol):
    """One vLLM instance that holds adapters and answers for whole ensembles."""

    async def prepare(self, version: Version) -> tuple[Probe, ...]:
        """Load, warm up and probe every adapter of `version`. Idempotent.

        Raises PrepareError; nothing of the version stays loaded then."""
        ...

    async def probe(self, key: str) -> tuple[Probe, ...]:
        """Probe the adapters of a loaded version again."""
        ...

    async def predict(self, call: PredictCall) -> Prediction | Refusal: ...

    def generate(self, call: GenerateCall) -> AsyncGenerator[bytes | Refusal, None]:
        """Yield the body of the answer: server-sent events if the body asks for a stream, else one JSON document.

        A refusal is always the last item: the only one, or, of a stream, why it broke off."""
        ...

    async def release(self, key: str) -> None:
        """Wait until no request runs on the version, then unload what no other version uses. Idempotent."""
        ...

    def state(self) -> EngineState: ...

    async def close(self) -> None: ...

"""What an engine promises to the rest of Choir. Nothing here depends on vLLM.

Every message crosses a process boundary (Ray pickles it), so all of them are plain frozen dataclasses. If a call cannot
be served, the engine returns a `Refusal`. It raises no exception: Ray would log a remote exception with a stack trace,
and the status would get lost.
"""

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from serve.adapter import AdapterKind
from serve.errors import Refusal
from serve.fusion.fused import Answers
from serve.images.limits import ImageLimits
from serve.manifest import Abstain, EarlyExit, Ensemble, Member

VERSION_NOT_LOADED = "version_not_loaded"
ENGINE_GONE = "engine_gone"
"""Code of a refusal: the engine was already dead when the call came, so it has done nothing for the call."""
ENGINE_DIED = "engine_died"
"""Code of a refusal: the engine died while it worked on the call."""
DEADLINE = Refusal(
    504,
    "The time that X-Request-Timeout gives the request is over, and the request has been ended.",
    "deadline_passed",
)
"""The refusal of a call that was not answered in the time that its client gives. No version is at fault."""
Route = Literal["completions", "chat", "responses", "tokenize", "detokenize"]
"""The routes that vLLM's own code answers."""
TOKEN_ROUTES: tuple[Route, ...] = ("tokenize", "detokenize")
"""Those of them that ask the tokenizer alone."""
MEMBER_FAILED = "member_failed"
"""Code of a refusal: the outputs of the version's members, or its fitted parameters, give no valid answer."""


@dataclass(frozen=True)
class Version:
    """One immutable version of an ensemble, and where its verified files lie on this machine."""

    ensemble: Ensemble
    adapters: Mapping[str, str]
    """Digest of each adapter -> its immutable folder in the store."""
    parameters: str | None = None
    """File of the fitted fusion parameters, if the method has any."""
    parameters_digest: str | None = None
    """SHA-256 of that file; every replica compares it."""
    allow_stale_fusion: bool = False
    """Whether fitted parameters may be used with other adapters than they were fitted on."""

    @property
    def key(self) -> str:
        """`name@version`."""
        return self.ensemble.id


@dataclass(frozen=True)
class Probe:
    """What one adapter answered to the fixed probe input."""

    digest: str
    outputs: tuple[float, ...]
    """A few numbers (log-probabilities, or values of the pooled vector) that replicas can compare."""
    change: float
    """Largest absolute difference from the plain base's outputs; 0 means that the adapter does nothing."""
    epsilon: float = 0.0
    """The machine epsilon of the engine's number type: the distance from 1 to the next larger number."""


@dataclass(frozen=True)
class EngineSettings:
    """The settings of an engine at its start."""

    model: str
    """The base's local folder or hub id."""
    kind: Literal["causal", "encoder"]
    adapter_slots: int
    """How many distinct LoRAs can run at once."""
    max_lora_rank: int = 64
    host_adapters: int | None = None
    """How many distinct LoRAs can be loaded at once; at least `adapter_slots`. None: as many as slots."""
    revision: str | None = None
    dtype: str = "auto"
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """vLLM's engine arguments by name, as the user gave them."""
    images: ImageLimits = field(default_factory=ImageLimits)
    """How large an image of a request may be."""
    share: float = 1.0
    """How much of the memory that one engine takes by default is this one's; less where several share a machine."""
    chat: Mapping[str, Any] = field(default_factory=dict)
    """vLLM's settings of chats by name, as in `serve.config.chat`; those that are left out have vLLM's defaults."""


class PrepareError(Exception):
    """A version cannot be loaded; the message says why, for the person who asked for the swap."""


class NoRoomError(PrepareError):
    """A version has no room beside the loaded ones. It can be loaded once enough of them are released."""


@dataclass(frozen=True)
class Text:
    """One input of a prediction."""

    text: str
    """Empty where an image stands alone."""
    text_pair: str | None = None
    image: str | None = None
    """A data URL, as the client gave it."""


@dataclass(frozen=True)
class PredictCall:
    """One `/v1/predict` request for one version."""

    version: str
    inputs: tuple[Text, ...]
    request_id: str
    member: str | None = None
    """The only member that answers; None: all members."""
    method: str | None = None
    """Fusion method of this request; None: the manifest's."""
    weights: Mapping[str, float] | None = None
    top_k: int | None = None
    """How many members a gate asks about an input; None: the manifest's."""
    early_exit: EarlyExit | None = None
    """None: the manifest's."""
    abstain: Abstain | None = None
    """None: the manifest's."""
    return_members: bool = False
    trace_headers: Mapping[str, str] | None = None
    pool: str = ""
    """The pool of engines that hold the version."""
    seconds_left: float | None = None
    """Seconds after which the engine ends the call, from its arrival on; None for no limit."""


@dataclass(frozen=True)
class Prediction:
    """The fused answer to N inputs by M members."""

    version: str
    labels: tuple[str, ...]
    """C labels; empty for regression."""
    answers: Answers
    members: tuple[Member, ...]
    """The members that answered, in the manifest's order."""
    member_answers: tuple[Answers, ...] | None
    """What each of them answers alone to the inputs that it was asked about; None unless the call asked for it."""
    prompt_tokens: int
    """Tokens of the inputs, counted once."""
    member_tokens: int
    """Tokens that all members together read, from the cache or not."""
    computed_tokens: int = 0
    """Those of the members' tokens that the engine computed; the others it had in its cache."""
    agreement: NDArray[np.float64] | None = None
    """[N] share of the asked members whose own answer is the fused one; None for values and for one member."""
    absent: tuple[str, ...] = ()
    """Members that could not be loaded and did not answer."""
    asked: NDArray[np.bool_] | None = None
    """[M, N] whether the member was asked about the input; None: all were asked about all."""
    abstained: NDArray[np.bool_] | None = None
    """[N] whether the answer is too uncertain for the risk that was asked for; None: no risk was."""


@dataclass(frozen=True)
class EmbedCall:
    """One `/v1/embeddings` request for one version."""

    version: str
    inputs: tuple[str, ...] | tuple[tuple[int, ...], ...]
    """Texts, or their token ids."""
    request_id: str
    member: str | None = None
    """The member whose vectors are asked for; None: those of the base, without adapters."""
    normalize: bool = True
    """Whether vectors get the length 1."""
    trace_headers: Mapping[str, str] | None = None
    pool: str = ""
    """The pool of engines that hold the version."""
    seconds_left: float | None = None
    """Seconds after which the engine ends the call, from its arrival on; None for no limit."""


@dataclass(frozen=True)
class Embeddings:
    """The vectors of N inputs."""

    vectors: NDArray[np.float32]
    """[N, hidden size]"""
    prompt_tokens: int


@dataclass(frozen=True)
class GenerateCall:
    """One call of a route of vLLM's for one version."""

    version: str
    route: Route
    body: Mapping[str, Any]
    """The client's JSON object, without `fusion`."""
    request_id: str
    member: str | None = None
    method: str | None = None
    weights: Mapping[str, float] | None = None
    prompts: Mapping[str, str] | None = None
    """Member -> its own prompt: the whole prompt of a completion, or the content of a chat's last user message."""
    plausibility: float | None = None
    return_members: bool = False
    trace_headers: Mapping[str, str] | None = None
    pool: str = ""
    """The pool of engines that hold the version."""
    seconds_left: float | None = None
    """Seconds after which the engine ends the call, from its arrival on; None for no limit."""

    @property
    def model(self) -> str:
        """The resolved model name in the answer: `name@version`, or `name@version/member`."""
        return f"{self.version}/{self.member}" if self.member else self.version


@dataclass(frozen=True)
class LoadedAdapter:
    """An adapter that an engine holds."""

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
    """How many distinct LoRAs can be loaded at once, including those in slots."""
    max_lora_rank: int = 0
    sequences: int = 0
    """Member sequences of all calls: those that vLLM has, and those that wait for a place in its queue."""


class Engine(Protocol):
    """One vLLM instance that holds adapters and answers for whole ensembles."""

    async def prepare(self, version: Version) -> tuple[Probe, ...]:
        """Loads, warms up and probes every adapter of `version`. Returns one probe per adapter. A version that is
        loaded already is only probed again.

        Raises PrepareError if the version cannot be loaded; then nothing of it stays loaded."""
        ...

    async def predict(self, call: PredictCall) -> Prediction | Refusal:
        """Returns the fused answer to the call's inputs."""
        ...

    async def embed(self, call: EmbedCall) -> Embeddings | Refusal:
        """Returns the vectors of the call's inputs, if the base pools vectors."""
        ...

    def generate(self, call: GenerateCall) -> AsyncGenerator[bytes | Refusal, None]:
        """Yields the body of the answer: server-sent events if the call asks for a stream, else one JSON document.

        A refusal is always the last item. After other items of a stream, it says why the stream broke off."""
        ...

    async def release(self, key: str) -> None:
        """Waits until no request runs on the version, then unloads what no other version uses. Idempotent."""
        ...

    def state(self) -> EngineState:
        """Returns what the engine holds now."""
        ...

    async def close(self) -> None:
        """Stops the engine and its processes."""
        ...

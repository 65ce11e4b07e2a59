"""What a Choir server answers. Fields that a newer server adds are kept and reachable as
attributes.
"""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class Answer(BaseModel):
    model_config = ConfigDict(extra="allow", populate_by_name=True, protected_namespaces=())


class AdapterRef(Answer):
    """One adapter and the SHA-256 of its files."""

    adapter: str
    digest: str


class MemberPrediction(Answer):
    """What one member alone answered."""

    name: str
    adapters: list[AdapterRef] = []
    label: str | None = None
    labels: list[str] | None = None
    probabilities: dict[str, float] = {}
    value: float | None = None


class PredictionItem(Answer):
    """The fused answer to one input; which fields are set depends on the ensemble's task."""

    index: int
    label: str | None = None
    """Classification."""
    labels: list[str] | None = None
    """Multilabel: those at or over their thresholds."""
    probabilities: dict[str, float] = {}
    """Label -> probability, for every label; multilabel: each label's own."""
    value: float | None = None
    """Regression."""
    std: float | None = None
    """Regression: the standard deviation of the members' values."""
    entropy: float | None = None
    """Of the fused probabilities, in nats."""
    disagreement: float | None = None
    """Mutual information between member and label, in nats."""
    members: list[MemberPrediction] | None = None


class Usage(Answer):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0
    member_tokens: int = 0
    """Tokens that all members together computed or read."""


class Prediction(Answer):
    """The answers to all inputs, in their order, and the version that gave them."""

    model: str
    data: list[PredictionItem]
    usage: Usage = Usage()

    @property
    def labels(self) -> list[str | None]:
        """The fused label of every input (classification)."""
        return [item.label for item in self.data]

    @property
    def label_sets(self) -> list[list[str]]:
        """The fused labels of every input (multilabel)."""
        return [item.labels or [] for item in self.data]

    @property
    def values(self) -> list[float | None]:
        """The fused value of every input (regression)."""
        return [item.value for item in self.data]


class CompletionChoice(Answer):
    index: int = 0
    text: str = ""
    finish_reason: str | None = None


class Completion(Answer):
    """A completion, or one chunk of a streamed one."""

    id: str | None = None
    model: str
    choices: list[CompletionChoice] = []
    usage: Usage | None = None

    @property
    def text(self) -> str:
        """Text of the first choice; empty in a chunk that only carries usage."""
        return self.choices[0].text if self.choices else ""


class ChatMessage(Answer):
    role: str | None = None
    content: str | None = None


class ChatChoice(Answer):
    index: int = 0
    message: ChatMessage = ChatMessage()
    finish_reason: str | None = None


class ChatCompletion(Answer):
    id: str | None = None
    model: str
    choices: list[ChatChoice] = []
    usage: Usage | None = None

    @property
    def text(self) -> str:
        """Content of the first choice."""
        return (self.choices[0].message.content if self.choices else None) or ""


class ChatDelta(Answer):
    index: int = 0
    delta: ChatMessage = ChatMessage()
    finish_reason: str | None = None


class ChatChunk(Answer):
    """One event of a streamed chat completion."""

    id: str | None = None
    model: str
    choices: list[ChatDelta] = []
    usage: Usage | None = None

    @property
    def text(self) -> str:
        """What this chunk adds to the first choice; empty in a chunk that only carries usage."""
        return (self.choices[0].delta.content if self.choices else None) or ""


class Model(Answer):
    """A name that `model` of a request may have: `name`, `name@version` or `name/member`."""

    id: str


class EnsembleMember(Answer):
    name: str
    weight: float | None = None
    adapters: list[AdapterRef] = []


class Tally(Answer):
    """Requests that one version answered while a candidate was tried out."""

    requests: int = 0
    errors: int = 0
    mean_ms: float | None = None
    """Until the answer, or the first part of a stream."""


class Trial(Answer):
    """How a candidate is tried out, and what was counted so far."""

    share: float
    auto_promote: bool = True
    gates: dict[str, float | None] = {}
    decision: str | None = None
    """promote or abort, if somebody has decided."""
    candidate: Tally = Tally()
    stable: Tally = Tally()
    """The active version's."""
    compared: int = 0
    """Requests that both versions answered."""
    agreement: float | None = None
    dropped: int = 0


class Rollout(Answer):
    """The change of one ensemble from one active version to another."""

    id: str
    state: str
    """preparing, shadowing, canarying, committing, draining, done or aborted."""
    ensemble: str | None = None
    from_version: int | None = Field(default=None, alias="from")
    to_version: int | None = Field(default=None, alias="to")
    replicas: Any = None
    """Progress of the engine replicas."""
    reason: str | None = None
    """Why it was aborted."""
    strategy: str = "immediate"
    trial: Trial | None = None
    """For shadow and canary."""

    @property
    def finished(self) -> bool:
        return self.state in ("done", "aborted")

    @property
    def open(self) -> bool:
        """Whether it is not committed on every replica, nor aborted."""
        return self.state in ("preparing", "shadowing", "canarying", "committing")


class AuditEntry(Answer):
    """Who changed which ensemble, from which version to which, and with what outcome."""

    at: str
    """ISO 8601, UTC."""
    actor: str
    action: str
    """import, swap, rollback, ..."""
    ensemble: str
    from_version: int | None = Field(default=None, alias="from")
    to_version: int | None = Field(default=None, alias="to")
    outcome: str
    """refused, committed, done or aborted."""
    reason: str | None = None


class EnsembleStatus(Answer):
    """An ensemble: its active version, the versions there are, and the rollout in progress."""

    name: str
    active_version: int | None = None
    versions: list[dict[str, Any]] = []
    """Those in use, and the newest of the others."""
    version_count: int | None = None
    """How many there are in all."""
    members: list[EnsembleMember] = []
    rollout: Rollout | None = None
    differences: list[str] = []
    """Where the bundle on disk says something else than what is served, in sentences."""
    stale_fusion: bool = False
    """Whether the active fusion was fitted on other adapters."""
    pinned: bool = True
    """Whether it is always loaded; else requests load it, and `loaded_on` of its versions says where they are."""
    fusion_fit: dict[str, Any] = {}
    """`state` (none, manual, fitted, refitted or stale), and which `parts` of the active fusion that is about."""


class Health(Answer):
    """The body of `/health` or `/ready`, and whether its status was 200."""

    ok: bool

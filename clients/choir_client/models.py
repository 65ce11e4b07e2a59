"""The answers of a Choir server. Fields that a newer server adds are kept, as attributes."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class Answer(BaseModel):
    model_config = ConfigDict(extra="allow", populate_by_name=True, protected_namespaces=())


class AdapterRef(Answer):
    """One adapter and the SHA-256 of its files."""

    adapter: str
    digest: str
    uri: str | None = None
    """In the status of an ensemble: the folder that it was copied from, if that is known."""
    swapped_by: str | None = None
    """In the status of an ensemble: who swapped it in. None if it came with a bundle."""
    swapped_at: str | None = None
    """In the status of an ensemble: when it was swapped in, as ISO 8601 in UTC."""


class Usage(Answer):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0
    member_tokens: int = 0
    """Tokens that all members together computed or read."""
    computed_tokens: int = 0
    """Those of them that the engine computed; the others were in its cache."""


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
        """The text of the first choice; empty in a chunk that holds only usage."""
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
        """The text of the first choice."""
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
        """The text that this chunk adds to the first choice; empty in a chunk that holds only usage."""
        return (self.choices[0].delta.content if self.choices else None) or ""


class Model(Answer):
    """A name that a request may give as `model`: `name`, `name@version` or `name/member`."""

    id: str


class EnsembleMember(Answer):
    name: str
    weight: float | None = None
    adapters: list[AdapterRef] = []


class Tally(Answer):
    """Counts of the requests that one version answered during a trial."""

    requests: int = 0
    errors: int = 0
    mean_ms: float | None = None
    """Mean milliseconds until the answer, or until the first part of a stream."""


class Trial(Answer):
    """The settings of a shadow or a canary, and the counts so far."""

    share: float
    auto_promote: bool = True
    gates: dict[str, float | None] = {}
    decision: str | None = None
    """`promote` or `abort`, once it is decided."""
    candidate: Tally = Tally()
    stable: Tally = Tally()
    """Counts of the active version."""
    compared: int = 0
    """Requests whose two answers, one of each version, were compared."""
    agreement: float | None = None
    """Share of the compared answers that were the same."""
    dropped: int = 0
    """Requests that were not compared because the queue was full or they were too large."""


class Rollout(Answer):
    """The change of one ensemble from one active version to another."""

    id: str
    state: str
    """`preparing`, `shadowing`, `canarying`, `committing`, `draining`, `done` or `aborted`."""
    ensemble: str | None = None
    from_version: int | None = Field(default=None, alias="from")
    to_version: int | None = Field(default=None, alias="to")
    replicas: Any = None
    """Progress of the engine replicas."""
    reason: str | None = None
    """Why the rollout was aborted."""
    strategy: str = "immediate"
    trial: Trial | None = None
    """For a shadow or a canary; else None."""
    actor: str | None = None
    """Who asked for it."""
    created: str | None = None
    """ISO 8601, UTC."""
    uris: dict[str, list[str]] = {}
    """Member -> the URIs of its adapters in the new version, for the members whose adapters change."""

    @property
    def finished(self) -> bool:
        """Whether the rollout is done or aborted."""
        return self.state in ("done", "aborted")

    @property
    def open(self) -> bool:
        """Whether the rollout is neither committed on every replica nor aborted."""
        return self.state in ("preparing", "shadowing", "canarying", "committing")


class AuditEntry(Answer):
    """One requested change: who asked for it, when, from which version to which, and the outcome."""

    at: str
    """ISO 8601, UTC."""
    actor: str
    action: str
    """`import`, `start`, `swap`, `rollback`, ..."""
    ensemble: str
    from_version: int | None = Field(default=None, alias="from")
    to_version: int | None = Field(default=None, alias="to")
    outcome: str
    """`refused`, `committed`, `done`, `aborted`, `decided`, or `not active` (after a start)."""
    reason: str | None = None
    uris: dict[str, list[str]] = {}
    """Member -> the URIs of its adapters, for the members that change."""


class EnsembleStatus(Answer):
    """An ensemble: its active version, its other versions, and the rollout in progress."""

    name: str
    active_version: int | None = None
    versions: list[dict[str, Any]] = []
    """The versions in use, and the newest of the others."""
    version_count: int | None = None
    """The number of all versions."""
    members: list[EnsembleMember] = []
    rollout: Rollout | None = None
    differences: list[str] = []
    """Sentences, one for each difference between the bundle of the start and what is served."""
    bring_in: str | None = None
    """The command that makes the version active that the start has brought; None if it is."""
    stale_fusion: bool = False
    """Whether the active fusion was fitted on other adapters than the active ones."""
    pinned: bool = True
    """Whether the ensemble is always loaded. Otherwise requests load it, and the `loaded_on` of a version lists the
    engines that have it."""
    pool: str | None = None
    """The pool of engines that serve it, named after the first bundle of its base."""
    fusion_fit: dict[str, Any] = {}
    """`state` (`none`, `manual`, `fitted`, `refitted` or `stale`), and the `parts` of the active fusion that it
    describes."""


class EnsemblePage(Answer):
    """A part of the list of ensembles."""

    data: list[EnsembleStatus]
    has_more: bool = False
    """Whether there are ensembles behind the last one."""


class PrunedVersion(Answer):
    """A version that nobody can reach any more."""

    ensemble: str
    version: int
    created: str
    """ISO 8601, UTC."""


class PrunedFiles(Answer):
    """An adapter's folder, or a file of fitted parameters, that no version needs any more."""

    digest: str
    bytes: int


class Pruned(Answer):
    """What a prune has removed, or would remove."""

    dry_run: bool
    versions: list[PrunedVersion] = []
    adapters: list[PrunedFiles] = []
    parameters: list[PrunedFiles] = []
    waiting: list[str] = []
    """Ensembles whose versions all stay this time, because a rollout is under way."""

    @property
    def bytes(self) -> int:
        """How much room the files take on the server's disk."""
        return sum(each.bytes for each in (*self.adapters, *self.parameters))


class Health(Answer):
    """The body of `/health` or `/ready`. `ok` says whether the status was 200."""

    ok: bool

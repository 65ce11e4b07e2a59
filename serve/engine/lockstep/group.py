"""A group as the scheduler sees it."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Literal

from vllm.v1.request import Request

ACCOUNT = "choir_group"
"""Key under which the leader's last output says what its group went through (`RequestOutput.kv_transfer_params`)."""

State = Literal["gathering", "waiting", "admitted", "ended"]
"""Until its siblings have all arrived; until there is room for all of them; until the end."""


@dataclass(eq=False)
class Group:
    """Siblings that live, run and end together."""

    key: str
    size: int
    order: int
    """Of arrival."""
    since: float
    """When the first sibling arrived, in seconds of `time.monotonic`."""
    state: State = "gathering"
    arrived: int = 0
    members: dict[str, Request] = field(default_factory=dict)
    """Those that have not ended, by request id."""
    leader: str = ""
    stalls: Counter[str] = field(default_factory=Counter)
    """Why it was held back, once for each time."""
    held: str | None = None
    """Why it is held back now."""
    error: str | None = None
    """Why Choir ended it, for the client."""

    @property
    def requests(self) -> list[Request]:
        return list(self.members.values())

    @property
    def adapters(self) -> set[int]:
        """vLLM's ids of the adapters that its members use."""
        return {
            request.lora_request.lora_int_id
            for request in self.members.values()
            if request.lora_request
        }

    def hold(self, reason: str) -> None:
        """Count a stall unless the same one goes on."""
        if self.held != reason:
            self.held = reason
            self.stalls[reason] += 1

    def account(self) -> dict[str, Any]:
        return {ACCOUNT: {"stalls": dict(self.stalls), "error": self.error}}

"""A group of sibling requests, as the scheduler sees it."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Literal

from vllm.v1.request import Request

from serve.engine.shared_prompt.computed import COMPUTED, computed_tokens

ACCOUNT = "choir_group"
"""Key in `RequestOutput.kv_transfer_params` of the leader's last output: the group's stalls, and its error if Choir
ended it."""

State = Literal["gathering", "waiting", "admitted", "ended"]
"""Gathering: siblings are still missing. Waiting: all are here, and there is no room yet. Admitted: they run."""


@dataclass(eq=False)
class Group:
    """Sibling requests that are admitted, preempted and ended together."""

    key: str
    size: int
    order: int
    """The group's number by arrival; a lower one goes first."""
    since: float
    """When the first sibling arrived, in seconds of `time.monotonic`."""
    state: State = "gathering"
    arrived: int = 0
    members: dict[str, Request] = field(default_factory=dict)
    """Request id -> sibling, without those that have ended."""
    leader: str = ""
    """The leader's request id, once it has arrived."""
    stalls: Counter[str] = field(default_factory=Counter)
    """Reason -> how often the group was held back for it."""
    held: str | None = None
    """Why it is held back now; None if it is not."""
    error: str | None = None
    """Why Choir ended it, in a sentence for the client."""
    computed: int = 0
    """Tokens that were computed for siblings that have ended."""

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
        """Counts a stall, unless the group is already held back for this reason."""
        if self.held != reason:
            self.held = reason
            self.stalls[reason] += 1

    def account(self) -> dict[str, Any]:
        """Returns what the leader's last output carries under `ACCOUNT`."""
        computed = self.computed + sum(map(computed_tokens, self.members.values()))
        return {
            ACCOUNT: {"stalls": dict(self.stalls), "error": self.error},
            COMPUTED: computed,
        }

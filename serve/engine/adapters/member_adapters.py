"""What a member runs with: the one value that the rest of the engine needs of its adapters."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vllm import SamplingParams
from vllm.exceptions import VLLMValidationError
from vllm.lora.request import LoRARequest

from serve.engine.soft.adapter import SoftAdapter
from serve.engine.soft.salt import cache_salt

PLACEHOLDER = 0
"""Token id that stands for every virtual token. Workers neither embed nor penalise it (`soft/inputs.py`)."""


@dataclass(frozen=True)
class MemberAdapters:
    """A member's loaded adapters: a LoRA, a prefix or prompt adapter, both, or none (the plain base)."""

    lora: LoRARequest | None = None
    soft: SoftAdapter | None = None

    @property
    def virtual_tokens(self) -> int:
        """Places of the model's context that the soft adapter takes."""
        return self.soft.tokens if self.soft else 0

    def prompt(self, prompt: Mapping[str, Any]) -> dict[str, Any]:
        """`prompt`, as vLLM renders one, as this member reads it: after its virtual tokens, under its salt.

        Raises VLLMValidationError (a 400) for a prompt that virtual tokens cannot stand before."""
        own = dict(prompt)
        lora = self.lora.lora_name if self.lora else None
        salt = cache_salt(self.soft, lora, prompt.get("cache_salt"))
        if salt is not None:
            own["cache_salt"] = salt
        if self.soft is None:
            return own
        if prompt.get("type", "token") != "token" or prompt.get("multi_modal_data"):
            raise VLLMValidationError(
                f"A member with a {self.soft.kind} adapter reads text only; leave images and the like out.",
                parameter="messages",
            )
        if not prompt["prompt_token_ids"]:
            raise VLLMValidationError("The prompt is empty.", parameter="prompt")
        own["prompt_token_ids"] = [PLACEHOLDER] * self.soft.tokens + list(
            prompt["prompt_token_ids"]
        )
        own.pop("prompt_token_offsets", None)
        return own

    def params(self, params: SamplingParams) -> SamplingParams:
        """`params` for this member's request; a copy where they say more."""
        if self.soft is None:
            return params
        own = params.clone()
        self.soft.place(own)
        return own

    def fitted(
        self, params: SamplingParams, prompt_tokens: int, context: int, *, clamp: bool
    ) -> SamplingParams:
        """`params` with no more `max_tokens` than the context has room for behind the virtual tokens.

        vLLM has checked what the client sent against the whole context. `clamp`: `max_tokens` is a default, to be
        lowered. Raises VLLMValidationError for what does not fit."""
        if self.soft is None:
            return params
        room = context - self.soft.tokens - prompt_tokens
        asked = room if params.max_tokens is None else params.max_tokens
        if room < 1 or (asked > room and not clamp):
            raise VLLMValidationError(
                too_long(prompt_tokens, context - self.soft.tokens), parameter="max_tokens"
            )
        own = params.clone()
        own.max_tokens = min(asked, room)
        return own


def too_long(prompt_tokens: int, context: int) -> str:
    """A prompt that leaves no room for the answer, in a sentence. `context`: without virtual tokens."""
    return (
        f"The prompt has {prompt_tokens} tokens, and there is room for {context} with the answer (the model's context, "
        "less what the member's adapter takes of it): shorten the prompt or lower max_tokens."
    )

"""What a member runs with. The rest of the engine knows its adapters by this value alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vllm import SamplingParams
from vllm.exceptions import VLLMValidationError
from vllm.lora.request import LoRARequest

from serve.engine.shared_prompt.activation import write_invocation
from serve.engine.soft.adapter import SoftAdapter
from serve.engine.soft.salt import cache_salt
from serve.labels import INVOCATION
from serve.prompting.invocation import Invocation

PLACEHOLDER = 0
"""The token id that stands for every virtual token. Workers neither embed nor penalise it (`soft/inputs.py`)."""


@dataclass(frozen=True)
class MemberAdapters:
    """A member's loaded adapters: a LoRA, a prefix or prompt adapter, both, or none (the plain base)."""

    lora: LoRARequest | None = None
    soft: SoftAdapter | None = None
    invocation: Invocation | None = None
    """From where on the LoRA acts; None if it acts everywhere."""

    @property
    def virtual_tokens(self) -> int:
        """How many positions of the context the soft adapter takes."""
        return self.soft.tokens if self.soft else 0

    def prompt(self, prompt: Mapping[str, Any]) -> dict[str, Any]:
        """Returns `prompt` (as vLLM renders it) with this member's virtual tokens before it, and with its cache salt.

        Raises VLLMValidationError (a 400) if the member has a soft adapter and the prompt has no tokens, and if its
        LoRA is an activated one and the prompt lacks the invocation."""
        own = dict(prompt)
        # The salt is in the first block's hash. An activated LoRA shares that block with the base.
        lora = self.lora.lora_name if self.lora and self.invocation is None else None
        if self.invocation and self.invocation.start_in(prompt["prompt_token_ids"]) is None:
            raise VLLMValidationError(
                f"The prompt lacks the text {self.invocation.text!r}, from which an adapter of the ensemble acts "
                f"(an activated LoRA): end the prompt in it, or in {INVOCATION}, which stands for each member's own.",
                parameter="prompt",
            )
        salt = cache_salt(self.soft, lora, prompt.get("cache_salt"))
        if salt is not None:
            own["cache_salt"] = salt
        if self.soft is None:
            return own
        if prompt.get("type", "token") not in ("token", "multimodal"):
            raise VLLMValidationError(
                f"A member with a {self.soft.kind} adapter reads tokens only.", parameter="prompt"
            )
        if not prompt["prompt_token_ids"]:
            raise VLLMValidationError("The prompt is empty.", parameter="prompt")
        own["prompt_token_ids"] = [PLACEHOLDER] * self.soft.tokens + list(
            prompt["prompt_token_ids"]
        )
        own.pop("prompt_token_offsets", None)
        if "mm_placeholders" in own:
            own["mm_placeholders"] = _behind(own["mm_placeholders"], self.soft.tokens)
        return own

    def params(self, params: SamplingParams, behind: int = 0) -> SamplingParams:
        """Returns the sampling parameters of this member's request: `params`, or a copy that names its soft adapter or
        its invocation. `behind`: how many tokens at the request's end are an answer that is scored."""
        if self.soft is None and self.invocation is None:
            return params
        own = params.clone()
        if self.soft is not None:
            self.soft.write_to(own)
        if self.invocation is not None:
            write_invocation(own, self.invocation, behind)
        return own

    def base_reads(self, prompt: Sequence[int]) -> int:
        """Returns how many tokens at a prompt's beginning the base reads, without any adapter."""
        if self.invocation is not None:
            return self.invocation.start_in(prompt) or 0
        return len(prompt) if self.lora is None and self.soft is None else 0

    def fitted(
        self, params: SamplingParams, prompt_tokens: int, context: int, *, clamp: bool
    ) -> SamplingParams:
        """Returns `params` with no more `max_tokens` than fit into the context after the virtual tokens and the prompt.

        vLLM has checked the client's values against the whole context. `clamp`: lower `max_tokens`, because the client
        did not choose it. Raises VLLMValidationError if the values do not fit."""
        if self.soft is None and self.invocation is None:
            return params
        context -= self.virtual_tokens
        room = context - prompt_tokens
        asked = room if params.max_tokens is None else params.max_tokens
        if room < 1 or (asked > room and not clamp):
            raise VLLMValidationError(too_long(prompt_tokens, context), parameter="max_tokens")
        own = params.clone()
        own.max_tokens = min(asked, room)
        return own


def _behind(places: Mapping[str, Sequence[Any]], tokens: int) -> dict[str, list[Any]]:
    """Returns the places of a prompt's images, so many tokens further behind. vLLM holds them as ranges."""
    return {
        kind: [replace(each, offset=each.offset + tokens) for each in ranges]
        for kind, ranges in places.items()
    }


def too_long(prompt_tokens: int, context: int) -> str:
    """Returns the message for a prompt that leaves no room for the answer. `context`: without virtual tokens."""
    return (
        f"The prompt has {prompt_tokens} tokens, and prompt and answer together have room for {context} (the model's "
        "context without the virtual tokens of the member's adapter): shorten the prompt or lower max_tokens."
    )

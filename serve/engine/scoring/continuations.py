"""How likely given tokens are after a prompt, by one member."""

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vllm import SamplingParams
from vllm.logprobs import FlatLogprobs
from vllm.outputs import RequestOutput
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.async_llm import AsyncLLM

from serve.engine.adapters.member_adapters import MemberAdapters
from serve.engine.shared_prompt.computed import taken
from serve.engine.vllm_hooks.scheduler import COMPUTE_FROM
from serve.watching import spans


@dataclass(frozen=True)
class Scored:
    """How likely tokens are after a prompt."""

    log_probs: list[float]
    computed: int
    """Tokens that the engine computed to find out."""


class Continuations:
    """Scores tokens after prompts. What the cache holds of a prompt is not computed again."""

    def __init__(self, llm: AsyncLLM) -> None:
        self._llm = llm

    async def log_probs(
        self,
        prompt: Sequence[int],
        tokens: list[int],
        member: MemberAdapters,
        *,
        counted: int = 0,
        behind: int | None = None,
        rendered: Mapping[str, Any] | None = None,
    ) -> Scored:
        """Returns the log-probability of each of `tokens` (at most 128) right after `prompt`.

        Adds the log-probability of the prompt's last `counted` tokens to each. `behind` is how many of its last tokens
        are the beginning of an answer; by default those that are counted. `rendered` is the prompt as vLLM renders it,
        if it has more than tokens, such as an image."""
        params = SamplingParams(
            max_tokens=1,
            temperature=0.0,
            logprob_token_ids=tokens,
            detokenize=False,
            flat_logprobs=True,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        first = member.virtual_tokens + len(prompt) - counted
        if counted:
            params.prompt_logprobs = 0
            params.skip_reading_prefix_cache = False
            params.extra_args = {COMPUTE_FROM: first - 1}
        whole = {**(rendered or {}), "prompt_token_ids": list(prompt)}
        own = member.params(params, counted if behind is None else behind)
        output = await self._run(whole, own, member)
        logprobs = output.outputs[0].logprobs
        assert logprobs is not None, "logprob_token_ids asks for them"
        position = logprobs[0]
        before = 0.0
        if counted:
            assert isinstance(output.prompt_logprobs, FlatLogprobs)
            starts = output.prompt_logprobs.start_indices[first:]
            before = sum(output.prompt_logprobs.logprobs[start] for start in starts)
        return Scored([before + position[token].logprob for token in tokens], taken(output))

    async def _run(
        self, prompt: Mapping[str, Any], params: SamplingParams, member: MemberAdapters
    ) -> RequestOutput:
        last = None
        async for output in self._llm.generate(
            member.prompt(prompt),
            params,
            f"score-{uuid.uuid4().hex}",
            lora_request=member.lora,
            trace_headers=spans.carried(),
        ):
            last = output
        assert last is not None, "vLLM ends every request with an output"
        if last.outputs[0].finish_reason == "error":
            raise RuntimeError("The engine ended a scoring request; its log says why.")
        return last

"""Label scores from a causal base: all labels of all members as one batch of vLLM requests."""

import asyncio
import uuid
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from vllm import SamplingParams
from vllm.logprobs import FlatLogprobs
from vllm.outputs import RequestOutput
from vllm.sampling_params import MAX_LOGPROB_TOKEN_IDS, RequestOutputKind
from vllm.v1.engine.async_llm import AsyncLLM

from serve.engine.adapters.member_adapters import Equipment
from serve.engine.vllm_hooks.scheduler import COMPUTE_FROM
from serve.labels import LabelError, LabelPath, encoder, label_paths


@dataclass(frozen=True)
class LabelScores:
    """Scores of C labels for N prompts by M members."""

    scores: NDArray[np.float64]
    """[M, N, C] sums of log-probabilities, or means over the label's tokens."""
    prompt_tokens: int
    """Tokens of the prompts, counted once."""
    member_tokens: int
    """Tokens of prompts and labels over all members."""


class CausalScorer:
    """Scores label texts after prompts.

    Labels that differ in their last token only share one request, which is the context and the tokens before that
    one (the stem): the last tokens' log-probabilities come from the sampling position (`logprob_token_ids`). A stem's
    own come from the prompt (`prompt_logprobs`), unless it is one token: then the request for the context alone, which
    most label sets need anyway, tells it for far less. So labels of one token cost one forward step, and longer ones,
    all in the same step, their own tokens and the last, partial cache block of the context, which the first request
    fills for all."""

    def __init__(self, llm: AsyncLLM) -> None:
        self._llm = llm
        self._encode = encoder(llm.get_tokenizer())
        self._context = llm.model_config.max_model_len

    async def score(
        self,
        prompts: Sequence[str],
        labels: Sequence[str],
        members: Sequence[Equipment],
        *,
        mean: bool = False,
    ) -> LabelScores:
        """Raises LabelError for what cannot be scored, a text that is too long for the model included."""
        context = self._context - max(member.virtual_tokens for member in members)
        plans = await asyncio.to_thread(self._plan, prompts, labels, context)
        rows = await asyncio.gather(
            *(self._score_one(plan, member) for member in members for plan in plans)
        )
        scores = np.array(rows, dtype=np.float64).reshape(len(members), len(plans), len(labels))
        if mean:
            scores /= np.array([[len(path.tokens) for path in plan] for plan in plans])
        prompt_tokens = sum(max(len(path.context) for path in plan) for plan in plans)
        label_tokens = sum(len(path.tokens) for plan in plans for path in plan)
        return LabelScores(scores, prompt_tokens, len(members) * (prompt_tokens + label_tokens))

    def _plan(
        self, prompts: Sequence[str], labels: Sequence[str], context: int
    ) -> list[list[LabelPath]]:
        """`context`: what the members' adapters leave of the model's."""
        plans = []
        for prompt in prompts:
            plan = label_paths(self._encode, prompt, labels)
            longest = max(len(path.context) + len(path.tokens) for path in plan)
            if longest > context:
                raise LabelError(
                    f"The text and its label are {longest} tokens long, and the model has room for {context}: shorten "
                    "the text."
                )
            plans.append(plan)
        return plans

    async def _score_one(self, plan: Sequence[LabelPath], member: Equipment) -> list[float]:
        """Scores of one prompt's labels [C] by one member."""
        asked: dict[_Stem, dict[int, float]] = defaultdict(dict)
        for context, stem, last in map(_parted, plan):
            asked[context, stem].setdefault(last, 0.0)
            if len(stem) == 1:
                asked[context, ()].setdefault(stem[0], 0.0)
        await asyncio.gather(*(self._tell(stem, tokens, member) for stem, tokens in asked.items()))
        return [
            asked[context, stem][last] + (asked[context, ()][stem[0]] if len(stem) == 1 else 0.0)
            for context, stem, last in map(_parted, plan)
        ]

    async def _tell(self, at: "_Stem", tokens: dict[int, float], member: Equipment) -> None:
        """Set each token's log-probability after a context and a stem; with the stem's where it is longer than one."""
        context, stem = at
        counted = len(stem) if len(stem) > 1 else 0
        ids = list(tokens)
        parts = [
            ids[start : start + MAX_LOGPROB_TOKEN_IDS]
            for start in range(0, len(ids), MAX_LOGPROB_TOKEN_IDS)
        ]
        values = await asyncio.gather(
            *(
                self.continuations([*context, *stem], part, member, counted=counted)
                for part in parts
            )
        )
        for part, found in zip(parts, values, strict=True):
            tokens.update(zip(part, found, strict=True))

    async def continuations(
        self, prompt: Sequence[int], tokens: list[int], member: Equipment, *, counted: int = 0
    ) -> list[float]:
        """Log-probability of each of `tokens` (at most 128) right after `prompt`, with that of the prompt's last
        `counted` tokens."""
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
        output = await self._run({"prompt_token_ids": list(prompt)}, params, member)
        logprobs = output.outputs[0].logprobs
        assert logprobs is not None, "logprob_token_ids asks for them"
        position = logprobs[0]
        before = 0.0
        if counted:
            assert isinstance(output.prompt_logprobs, FlatLogprobs)
            starts = output.prompt_logprobs.start_indices[first:]
            before = sum(output.prompt_logprobs.logprobs[start] for start in starts)
        return [before + position[token].logprob for token in tokens]

    async def _run(
        self, prompt: Mapping[str, Any], params: SamplingParams, member: Equipment
    ) -> RequestOutput:
        last = None
        async for output in self._llm.generate(
            member.prompt(prompt),
            member.params(params),
            f"score-{uuid.uuid4().hex}",
            lora_request=member.lora,
        ):
            last = output
        assert last is not None, "vLLM ends every request with an output"
        if last.outputs[0].finish_reason == "error":
            raise RuntimeError("The engine ended a label's request; its log says why.")
        return last


_Stem: TypeAlias = tuple[tuple[int, ...], tuple[int, ...]]
"""A prompt's tokens, and a label's but for its last."""


def _parted(path: LabelPath) -> tuple[tuple[int, ...], tuple[int, ...], int]:
    return path.context, path.tokens[:-1], path.tokens[-1]

"""Label scores from a causal base: all labels of all members as one batch of vLLM requests."""

import asyncio
import uuid
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from vllm import SamplingParams
from vllm.logprobs import FlatLogprobs
from vllm.outputs import RequestOutput
from vllm.sampling_params import MAX_LOGPROB_TOKEN_IDS, RequestOutputKind
from vllm.v1.engine.async_llm import AsyncLLM

from serve.engine.equipment import Equipment
from serve.engine.scheduler import COMPUTE_FROM
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
    one: the last tokens' log-probabilities come from the sampling position (`logprob_token_ids`), those before from
    the prompt (`prompt_logprobs`). So labels of one token cost one forward step, and longer ones, all in the same
    step, their own tokens and the last, partial cache block of the context, which the first request fills for all."""

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
        siblings: dict[tuple[tuple[int, ...], tuple[int, ...]], list[int]] = defaultdict(list)
        for index, path in enumerate(plan):
            siblings[path.context, path.tokens[:-1]].append(index)
        steps = [
            (context, stem, chosen[start : start + MAX_LOGPROB_TOKEN_IDS])
            for (context, stem), chosen in siblings.items()
            for start in range(0, len(chosen), MAX_LOGPROB_TOKEN_IDS)
        ]
        values = await asyncio.gather(
            *(
                self.continuations(
                    context, stem, [plan[index].tokens[-1] for index in chosen], member
                )
                for context, stem, chosen in steps
            )
        )
        scores = [0.0] * len(plan)
        for (_, _, chosen), step_scores in zip(steps, values, strict=True):
            for index, score in zip(chosen, step_scores, strict=True):
                scores[index] = score
        return scores

    async def continuations(
        self,
        context: Sequence[int],
        stem: Sequence[int],
        tokens: list[int],
        member: Equipment,
    ) -> list[float]:
        """Log-probability of `stem` and then each of `tokens` (at most 128) right after `context`."""
        params = SamplingParams(
            max_tokens=1,
            temperature=0.0,
            logprob_token_ids=tokens,
            detokenize=False,
            flat_logprobs=True,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        if stem:
            params.prompt_logprobs = 0
            params.skip_reading_prefix_cache = False
            params.extra_args = {COMPUTE_FROM: member.virtual_tokens + len(context) - 1}
        output = await self._run({"prompt_token_ids": [*context, *stem]}, params, member)
        logprobs = output.outputs[0].logprobs
        assert logprobs is not None, "logprob_token_ids asks for them"
        position = logprobs[0]
        before = 0.0
        if stem:
            assert isinstance(output.prompt_logprobs, FlatLogprobs)
            starts = output.prompt_logprobs.start_indices[member.virtual_tokens + len(context) :]
            before = sum(output.prompt_logprobs.logprobs[start] for start in starts)
        return [before + position[token].logprob for token in tokens]

    async def _run(
        self, prompt: Mapping[str, Any], params: SamplingParams, member: Equipment
    ) -> RequestOutput:
        last = None
        async for output in self._llm.generate(
            member.prompt(prompt),  # type: ignore[arg-type]
            member.params(params),
            f"score-{uuid.uuid4().hex}",
            lora_request=member.lora,
        ):
            last = output
        assert last is not None, "vLLM ends every request with an output"
        if last.outputs[0].finish_reason == "error":
            raise RuntimeError("The engine ended a label's request; its log says why.")
        return last

"""Label scores from a causal base. All labels of all members are requests that vLLM computes together."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from vllm.sampling_params import MAX_LOGPROB_TOKEN_IDS
from vllm.v1.engine.async_llm import AsyncLLM

from serve.engine.adapters.member_adapters import MemberAdapters
from serve.engine.limits.fair_queue import CallQueue
from serve.engine.limits.text_limit import TextLimit, few_at_a_time
from serve.engine.scoring.continuations import Continuations, Scored
from serve.engine.scoring.pictures import Picture, Pictures
from serve.images.limits import ImageLimits
from serve.labels import LabelError, LabelPath, encoder, label_paths
from serve.prompting.invocation import Invocation
from serve.prompting.reader import PromptReader


@dataclass(frozen=True)
class Image:
    """The image of one prompt."""

    url: str
    """A data URL."""
    head: str
    """The prompt up to what stands for the image, and with it."""
    name: str
    """What stands for it in errors."""


@dataclass(frozen=True)
class LabelScores:
    """Scores of C labels for N prompts by M members."""

    scores: NDArray[np.float64]
    """[M, N, C] sums of log-probabilities, or means over the label's tokens."""
    prompt_tokens: int
    """Tokens of the prompts, counted once."""
    member_tokens: int
    """Tokens of prompts and labels over all members."""
    computed_tokens: int
    """Tokens that the engine computed for all of them. It computes a cache block again for each label that begins in
    it."""


_Stem: TypeAlias = tuple[int, tuple[int, ...]]
"""The number of the context's tokens, and the label's tokens without the last one."""


@dataclass(frozen=True)
class _Question:
    """One request to vLLM: how likely are some tokens after a context and a stem?"""

    context: Sequence[int]
    stem: tuple[int, ...]
    tokens: tuple[int, ...]


class _Plan:
    """The questions that score the labels after one prompt."""

    def __init__(self, paths: Sequence[LabelPath]) -> None:
        self.paths = paths
        contexts: dict[int, tuple[int, ...]] = {}
        asked: dict[_Stem, dict[int, None]] = {}
        for path in paths:
            length, stem, last = _parted(path)
            contexts[length] = path.context
            asked.setdefault((length, stem), {})[last] = None
            if len(stem) == 1:
                asked.setdefault((length, ()), {})[stem[0]] = None
        self.questions = [
            _Question(contexts[length], stem, tuple(tokens)[start : start + MAX_LOGPROB_TOKEN_IDS])
            for (length, stem), tokens in asked.items()
            for start in range(0, len(tokens), MAX_LOGPROB_TOKEN_IDS)
        ]

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the longest context."""
        return max(len(path.context) for path in self.paths)

    @property
    def label_tokens(self) -> list[int]:
        """Tokens of each label, [C]."""
        return [len(path.tokens) for path in self.paths]

    def scores(self, answers: Sequence[Sequence[float]]) -> list[float]:
        """Returns the labels' scores [C]. `answers`: for each question, the log-probability of each of its tokens."""
        answered: dict[_Stem, dict[int, float]] = {}
        for question, values in zip(self.questions, answers, strict=True):
            at = len(question.context), question.stem
            answered.setdefault(at, {}).update(zip(question.tokens, values, strict=True))
        return [
            answered[length, stem][last]
            + (answered[length, ()][stem[0]] if len(stem) == 1 else 0.0)
            for length, stem, last in map(_parted, self.paths)
        ]


class CausalScorer:
    """Scores label texts after prompts.

    A label's tokens without the last one are its stem. Labels with the same stem share one request, whose prompt is the
    context and the stem:

    - The log-probabilities of the last tokens come from the sampling position (`logprob_token_ids`).
    - Those of a stem come from the prompt (`prompt_logprobs`). A stem of one token is cheaper: its log-probability
      comes from the request for the context alone, which most label sets need anyway.

    So labels of one token cost one forward step. Longer labels cost their own tokens and the last, partial cache block
    of the context, in the same step: the first request fills the cache for all."""

    def __init__(self, llm: AsyncLLM, tokenizer: Any, images: ImageLimits | None = None) -> None:
        """`images`: how large they may be, if the base reads any."""
        self._continuations = Continuations(llm)
        self._pictures = Pictures(llm, images or ImageLimits())
        self._encode = encoder(tokenizer)
        self._reader = PromptReader(tokenizer)
        self._context = llm.model_config.max_model_len
        self._limit = TextLimit(tokenizer, self._context)

    async def score(
        self,
        prompts: Sequence[str],
        labels: Sequence[str],
        members: Sequence[MemberAdapters],
        queue: CallQueue,
        *,
        mean: bool = False,
        heads: Mapping[Invocation, Sequence[str]] | None = None,
        images: Sequence[Image | None] | None = None,
    ) -> LabelScores:
        """Returns the scores of all labels after all prompts by all members.

        `queue`: gives the call's requests places in the engine's queue. `mean`: divide each score by the label's number
        of tokens. `heads`: the prompts without their invocation, for each invocation that a member has. `images`: the
        prompts' images; None if no prompt has one. Raises LabelError for labels, a prompt or an image that cannot be
        scored, or that are too long for the model."""
        self._limit.check(prompts)
        context = self._context - max(member.virtual_tokens for member in members)
        plans: dict[Invocation | None, list[_Plan]] = {}
        for invocation in dict.fromkeys(member.invocation for member in members):
            texts = prompts if invocation is None else (heads or {})[invocation]
            plans[invocation] = []
            for few in few_at_a_time(texts):
                plans[invocation] += await asyncio.to_thread(
                    self._plan, few, labels, context, invocation
                )
        own = [plans[member.invocation] for member in members]
        pictures = [
            None if image is None else self._picture(image, [plan[text] for plan in own])
            for text, image in enumerate(images or [None] * len(prompts))
        ]
        # Text by text, so that a prompt that members share is not evicted between two of them.
        texts_of = range(len(prompts))
        answers = iter(
            await queue.run_all(
                partial(self._ask, question, member, pictures[text])
                for text in texts_of
                for member, plan in zip(members, own, strict=True)
                for question in plan[text].questions
            )
        )
        scores = np.empty((len(members), len(prompts), len(labels)), dtype=np.float64)
        computed = 0
        for text in texts_of:
            for number, plan in enumerate(own):
                said = [next(answers) for _ in plan[text].questions]
                computed += sum(each.computed for each in said)
                scores[number, text] = plan[text].scores([each.log_probs for each in said])
                if mean:
                    scores[number, text] /= plan[text].label_tokens
        read = [sum(plan.prompt_tokens + sum(plan.label_tokens) for plan in each) for each in own]
        prompt_tokens = sum(plan.prompt_tokens for plan in own[0])
        seen = sum(each.tokens for each in pictures if each is not None)
        return LabelScores(scores, prompt_tokens + seen, sum(read) + seen * len(members), computed)

    def _picture(self, image: Image, plans: Sequence[_Plan]) -> Picture:
        """Returns the image that all questions of these plans are about. Raises LabelError if the tokens before it are
        not the same in all of them."""
        [before] = self._encode([image.head])
        questions = [question for plan in plans for question in plan.questions]
        if any(list(each.context[: len(before)]) != list(before) for each in questions):
            raise LabelError(f"{image.name}: the text behind the image changes how it is read.")
        return self._pictures.of_url(image.url, image.name, len(questions), before)

    def _plan(
        self,
        prompts: Sequence[str],
        labels: Sequence[str],
        context: int,
        invocation: Invocation | None,
    ) -> list[_Plan]:
        """Returns a plan for each prompt, behind which the invocation stands if there is one. `context`: the model's
        context without the members' virtual tokens.

        Raises LabelError for a prompt that is too long with its longest label."""
        plans = []
        for prompt in prompts:
            self._limit.check_doubtful(prompt)
            if invocation is None:
                paths = label_paths(self._encode, prompt, labels)
            else:
                [paths] = self._reader.paths([prompt], labels, invocation)
            longest = max(len(path.context) + len(path.tokens) for path in paths)
            if longest > context:
                raise LabelError(
                    f"The text with its longest label has {longest} tokens, and the model has room for {context}: "
                    "shorten the text."
                )
            plans.append(_Plan(paths))
        return plans

    async def _ask(
        self, question: _Question, member: MemberAdapters, picture: Picture | None
    ) -> Scored:
        """Returns the log-probability of each token of a question. That of the stem is added if the stem has more than
        one token. Raises LabelError for an image that cannot be read, or that is too long with its text."""
        stem, context, rendered = question.stem, question.context, None
        if picture is not None:
            context, rendered = await picture.behind(context)
            room = self._context - member.virtual_tokens
            if len(context) + len(stem) + 1 > room:
                raise LabelError(
                    f"The image with its text and label has {len(context) + len(stem) + 1} tokens, and the model has "
                    f"room for {room}: shorten the text, or send a smaller image."
                )
        return await self._continuations.log_probs(
            [*context, *stem],
            list(question.tokens),
            member,
            counted=len(stem) if len(stem) > 1 else 0,
            behind=len(stem),
            rendered=rendered,
        )


def _parted(path: LabelPath) -> tuple[int, tuple[int, ...], int]:
    """Returns the number of the context's tokens, the stem, and the label's last token."""
    return len(path.context), path.tokens[:-1], path.tokens[-1]

"""The engine client that vLLM's own OpenAI serving runs on. Its `generate()` answers with an ensemble."""

import asyncio
import logging
from collections import defaultdict
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
from vllm import SamplingParams
from vllm.engine.protocol import EngineClient
from vllm.lora.request import LoRARequest
from vllm.outputs import RequestOutput
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.async_llm import AsyncLLM

from serve import metrics
from serve.engine.adapters.member_adapters import MemberAdapters
from serve.engine.limits.fair_queue import CallQueue
from serve.engine.lockstep.client import Lockstep, MemberPrompt
from serve.engine.lockstep.logprobs import TokenReport
from serve.engine.lockstep.sibling_spec import TokenFusion
from serve.engine.scoring.continuations import Continuations
from serve.engine.shared_prompt.computed import taken
from serve.fusion.answers import AnswerChoice, choose_answer, ranked_answer
from serve.fusion.ranking.candidates import Candidates, same_texts
from serve.fusion.ranking.ranker import Ranker
from serve.manifest import AnswerMethod, Ensemble, Member
from serve.together import together

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class MemberRun:
    """A member that is ready to generate."""

    member: Member
    member_adapters: MemberAdapters

    @property
    def name(self) -> str:
        return self.member.name


@dataclass
class GenerationContext:
    """Everything that one OpenAI call needs, and what its members have said so far."""

    model: str
    """The model name in the answer."""
    ensemble: Ensemble
    member_runs: Sequence[MemberRun]
    """The members that answer, in the manifest's order."""
    queue: CallQueue
    """Gives the call's prompts places in the engine's queue."""
    weights: Mapping[str, float] | None = None
    """Member -> weight, as the request gives them."""
    fusion: TokenFusion | AnswerMethod | None = None
    """How several members become one: fused at every token, or by choosing one of their whole answers. None: one
    member answers."""
    ranker: Ranker | None = None
    """What ranks the members' answers; None if none was fitted."""
    prompts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Member -> its own prompt, as vLLM renders it."""
    member_prompts: dict[tuple[int, ...], Mapping[str, Sequence[int]]] = field(default_factory=dict)
    """The request's token ids -> member -> its own, where members read a text in different ways."""
    clamp_max_tokens: bool = False
    """Whether the engine may lower `max_tokens` to what there is room for, because the client gave no limit."""
    return_members: bool = False
    absent: Sequence[str] = ()
    """Members that could not be loaded."""
    choices: dict[str, tuple[AnswerChoice, Sequence[str]]] = field(default_factory=dict)
    """vLLM's request id -> which whole answer was chosen, and every member's."""
    reports: dict[tuple[str, int], list[TokenReport]] = field(
        default_factory=lambda: defaultdict(list)
    )
    """vLLM's request id and choice -> reports about tokens that have not been sent to the client yet."""
    member_tokens: int = 0
    """Tokens that all members together have read and written."""
    computed_tokens: int = 0
    """Those of them that the engine computed; the others it had in its cache."""
    _generating: int = field(default=0, init=False)
    _idle: asyncio.Event = field(default_factory=asyncio.Event, init=False)

    def count(self, read: int, computed: int) -> None:
        """Counts tokens that requests of members have read, and those that the engine computed for them."""
        self.computed_tokens += computed
        metrics.prompt_tokens_shared(self.ensemble.name, max(0, read - computed))

    @contextmanager
    def generating(self) -> Iterator[None]:
        """Marks the time in which the engine works for the call."""
        self._generating += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._generating -= 1
            if not self._generating:
                self._idle.set()

    async def wait_until_idle(self, seconds: float) -> None:
        """Returns when the engine no longer works for the call, or after `seconds` at the latest."""
        if self._generating:
            try:
                await asyncio.wait_for(self._idle.wait(), seconds)
            except TimeoutError:
                logger.error("A request of %s goes on although nobody reads it.", self.model)


_OF_TEXT = ("prompt", "prompt_token_offsets")
"""Keys of vLLM's rendered prompt that are about its text, and not about what follows it."""

current_generation: ContextVar[GenerationContext] = ContextVar("current_generation")
"""The context of the call that the current task answers."""


@dataclass(frozen=True)
class PromptRequest:
    """One prompt of a call, as vLLM's serving passes it to the engine client."""

    context: GenerationContext
    prompt: Mapping[str, Any]
    """As vLLM renders it."""
    params: SamplingParams
    request_id: str
    options: Mapping[str, Any]
    """Further arguments of vLLM's `generate()`, which go to the engine as they are."""

    def prompt_of(self, run: MemberRun) -> Mapping[str, Any]:
        """Returns the prompt that this member reads: its own, or the request's."""
        own = self.context.prompts.get(run.name)
        if own is not None or not self.context.member_prompts:
            return self.prompt if own is None else own
        ids = self.context.member_prompts.get(tuple(self.prompt["prompt_token_ids"]), {})
        if run.name not in ids:
            return self.prompt
        rest = {k: v for k, v in self.prompt.items() if k != "prompt_token_offsets"}
        return {**rest, "prompt_token_ids": list(ids[run.name])}


class EnsembleClient:
    """vLLM's engine client with another `generate()`; everything else is the engine's own.

    vLLM's serving calls it in the task that set `current_generation`, or in a child of that task."""

    def __init__(self, llm: AsyncLLM) -> None:
        self._llm = llm
        self._lockstep = Lockstep(llm)
        self._continuations = Continuations(llm)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._llm, name)

    async def generate(
        self,
        prompt: Mapping[str, Any],
        sampling_params: SamplingParams,
        request_id: str,
        *,
        lora_request: LoRARequest | None = None,
        **kwargs: Any,
    ) -> AsyncGenerator[RequestOutput, None]:
        """Yields the outputs for one prompt.

        They are the member's own stream if one member answers, the fused stream if several are fused at every token,
        and one output if one of their whole answers is chosen."""
        context = current_generation.get()
        request = PromptRequest(context, prompt, sampling_params, request_id, kwargs)
        if len(context.member_runs) == 1:
            answer = self._alone(request)
        elif isinstance(context.fusion, TokenFusion):
            answer = self._fuse(request, context.fusion)
        else:
            assert context.fusion is not None, "several members need a fusion"
            answer = self._choose(request, context.fusion)
        size = len(context.member_runs) * sampling_params.n
        with context.generating():
            async with context.queue.place(size), aclosing(answer):
                async for output in answer:
                    # vLLM computes `usage` and `echo` from these: they are about the client's prompt, not a member's.
                    output.prompt, output.prompt_token_ids = None, prompt.get("prompt_token_ids")
                    yield output

    async def _alone(self, request: PromptRequest) -> AsyncGenerator[RequestOutput, None]:
        """Yields the stream of the only member."""
        context = request.context
        (run,) = context.member_runs
        stream = self._stream(request, run)
        async with aclosing(stream):
            async for output in stream:
                tokens = sum(len(choice.token_ids) for choice in output.outputs)
                metrics.tokens_generated(context.ensemble.name, tokens, tokens)
                yield output

    async def _fuse(
        self, request: PromptRequest, fusion: TokenFusion
    ) -> AsyncGenerator[RequestOutput, None]:
        """Yields the stream of all members, fused at every token, and notes what they reported."""
        context = request.context
        members = [
            MemberPrompt(run.member_adapters, request.prompt_of(run)) for run in context.member_runs
        ]
        context.member_tokens += sum(member.length for member in members)
        nats: defaultdict[int, list[float]] = defaultdict(list)
        written = computed = 0
        pieces = self._lockstep.generate(
            members,
            fusion,
            request.params,
            request.request_id,
            report_members=context.return_members,
            clamp=context.clamp_max_tokens,
            options=request.options,
        )
        async with aclosing(pieces):
            async for piece in pieces:
                tokens = sum(len(choice.token_ids) for choice in piece.output.outputs)
                context.member_tokens += tokens * len(members)
                metrics.tokens_generated(context.ensemble.name, tokens, tokens * len(members))
                written += tokens * len(members)
                computed += piece.computed_tokens
                for choice, report in piece.reports.items():
                    context.reports[request.request_id, choice].append(report)
                    nats[choice] += report.disagreement
                yield piece.output
        # Nothing reads an answer's last token.
        fed = written - len(members) * request.params.n
        context.count(request.params.n * sum(m.length for m in members) + fed, computed)
        metrics.disagreement_seen(
            context.ensemble.name, [sum(each) / len(each) for each in nats.values() if each]
        )

    async def _choose(
        self, request: PromptRequest, method: AnswerMethod
    ) -> AsyncGenerator[RequestOutput, None]:
        """Yields one output, the answer that the method chooses, and notes the choice."""
        context = request.context
        outputs = await together(self._whole_answer(request, run) for run in context.member_runs)
        failed = [each for each in outputs if each.outputs[0].finish_reason == "error"]
        if failed:  # vLLM's serving reports the error to the client; an empty text is no answer
            failed[0].request_id = request.request_id
            yield failed[0]
            return
        answers = [output.outputs[0].text for output in outputs]
        if method == "stack" and not same_texts(answers):
            assert context.ranker is not None, "a request without one is refused"
            candidates = await self._candidates(request, outputs)
            choosing = partial(ranked_answer, context.ensemble, context.ranker, candidates)
        else:
            weights = None if method == "stack" else context.weights
            by_text = "vote" if method == "stack" else method  # equal texts need no ranker
            choosing = partial(choose_answer, context.ensemble, answers, by_text, weights)
        # In a thread: chrF over long answers takes a while, in which the engine must go on.
        choice = await asyncio.to_thread(choosing)
        context.choices[request.request_id] = (choice, answers)
        lengths = [len(output.outputs[0].token_ids) for output in outputs]
        prompts = [request.prompt_of(run) for run in context.member_runs]
        prompt_tokens = sum(len(each["prompt_token_ids"]) for each in prompts)
        context.member_tokens += sum(lengths) + prompt_tokens
        metrics.tokens_generated(context.ensemble.name, lengths[choice.winner], sum(lengths))
        winner = outputs[choice.winner]
        winner.request_id = request.request_id
        yield winner

    async def _candidates(
        self, request: PromptRequest, outputs: Sequence[RequestOutput]
    ) -> Candidates:
        """Returns the members' answers, with how likely each member finds each of them. A member scores one answer
        after the other, so that a call takes no more places than it has."""
        written = [tuple(output.outputs[0].token_ids) for output in outputs]
        rows = await together(
            self._scored(request, run, written) for run in request.context.member_runs
        )
        return Candidates(
            [output.outputs[0].text for output in outputs],
            [len(tokens) for tokens in written],
            np.array(rows, dtype=np.float64),
        )

    async def _scored(
        self, request: PromptRequest, run: MemberRun, written: Sequence[tuple[int, ...]]
    ) -> list[float]:
        """Returns the log-probability of each of the `written` answers by one member. Equal ones are scored once; one
        that is longer than the member's context has room for is scored up to there."""
        prompt = request.prompt_of(run)
        own = {key: value for key, value in prompt.items() if key not in _OF_TEXT}
        before = list(prompt["prompt_token_ids"])
        context = self._llm.model_config.max_model_len
        room = context - run.member_adapters.virtual_tokens - len(before)
        found: dict[tuple[int, ...], float] = {(): 0.0}
        for tokens in dict.fromkeys(each[:room] for each in written):
            if tokens:
                scored = await self._continuations.log_probs(
                    [*before, *tokens[:-1]],
                    [tokens[-1]],
                    run.member_adapters,
                    counted=len(tokens) - 1,
                    rendered=own,
                )
                (found[tokens],) = scored.log_probs
                request.context.member_tokens += len(tokens)
                request.context.count(len(before) + len(tokens) - 1, scored.computed)
        return [found[each[:room]] for each in written]

    async def _whole_answer(self, request: PromptRequest, run: MemberRun) -> RequestOutput:
        """Returns one member's answer once it is complete."""
        params = request.params.clone()
        params.output_kind = RequestOutputKind.FINAL_ONLY
        own = replace(request, params=params, request_id=f"{request.request_id}-{run.name}")
        last = None
        async for output in self._stream(own, run):
            last = output
        assert last is not None, "vLLM ends every request with an output"
        return last

    async def _stream(
        self, request: PromptRequest, run: MemberRun
    ) -> AsyncGenerator[RequestOutput, None]:
        """Yields the outputs of one member alone."""
        member_adapters, prompt = run.member_adapters, request.prompt_of(run)
        params = member_adapters.fitted(
            request.params,
            len(prompt["prompt_token_ids"]),
            self._llm.model_config.max_model_len,
            clamp=request.context.clamp_max_tokens,
        )
        written = computed = 0
        stream = self._llm.generate(
            member_adapters.prompt(prompt),
            member_adapters.params(params),
            request.request_id,
            lora_request=member_adapters.lora,
            **request.options,
        )
        async with aclosing(stream):
            async for output in stream:
                if output.prompt_logprobs and member_adapters.virtual_tokens:
                    own = output.prompt_logprobs[member_adapters.virtual_tokens + 1 :]
                    output.prompt_logprobs = [None, *own]
                computed += taken(output)
                written += sum(len(choice.token_ids) for choice in output.outputs)
                if (
                    output.finished and params.n == 1
                ):  # of several choices, vLLM tells the last one's
                    read = len(prompt["prompt_token_ids"]) + written - 1
                    request.context.count(read, computed)
                yield output


EngineClient.register(EnsembleClient)

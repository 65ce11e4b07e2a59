"""The engine client that vLLM's own OpenAI serving runs on: its `generate()` answers with an ensemble."""

import asyncio
import logging
from collections import defaultdict
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from vllm import SamplingParams
from vllm.engine.protocol import EngineClient
from vllm.lora.request import LoRARequest
from vllm.outputs import RequestOutput
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.async_llm import AsyncLLM

from serve import metrics
from serve.engine.adapters.member_adapters import MemberAdapters
from serve.engine.lockstep.client import Lockstep, Part
from serve.engine.lockstep.logprobs import TokenReport
from serve.engine.lockstep.sibling_spec import TokenFusion
from serve.engine.places import Line
from serve.fusion.answers import AnswerVote, vote_answers
from serve.manifest import Ensemble, Member
from serve.together import together

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class MemberRun:
    """A member, ready to generate."""

    member: Member
    member_adapters: MemberAdapters

    @property
    def name(self) -> str:
        return self.member.name


@dataclass
class GenerationContext:
    """Who answers one OpenAI call, and, as it is answered, what each member said."""

    model: str
    """The name that the answer carries."""
    ensemble: Ensemble
    runs: Sequence[MemberRun]
    line: Line
    """For places in the engine's queue: a call may have many prompts."""
    weights: Mapping[str, float] | None = None
    """The request's, by member."""
    fusion: TokenFusion | None = None
    """How several members are fused at every token; None: they vote on whole answers."""
    prompts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Member -> its own prompt, as vLLM renders one."""
    open_end: bool = False
    """Whether the client left `max_tokens` to us."""
    return_members: bool = False
    absent: Sequence[str] = ()
    """Members that could not be loaded."""
    votes: dict[str, tuple[AnswerVote, Sequence[str]]] = field(default_factory=dict)
    """vLLM's request id -> the verdict and every member's whole answer."""
    reports: dict[tuple[str, int], list[TokenReport]] = field(
        default_factory=lambda: defaultdict(list)
    )
    """vLLM's request id and choice -> what the members thought of tokens that the client has not been told yet."""
    member_tokens: int = 0
    _generating: int = field(default=0, init=False)
    _silent: asyncio.Event = field(default_factory=asyncio.Event, init=False)

    @contextmanager
    def generating(self) -> Iterator[None]:
        """While the engine works for the call."""
        self._generating += 1
        self._silent.clear()
        try:
            yield
        finally:
            self._generating -= 1
            if not self._generating:
                self._silent.set()

    async def silence(self, seconds: float) -> None:
        """Returns when the engine works for the call no more, or after so many seconds."""
        if self._generating:
            try:
                await asyncio.wait_for(self._silent.wait(), seconds)
            except TimeoutError:
                logger.error("A request of %s goes on although nobody reads it.", self.model)


current_context: ContextVar[GenerationContext] = ContextVar("current_context")


class EnsembleClient:
    """vLLM's engine client with `generate()` replaced; everything else is the engine's own.

    vLLM's serving code calls it in the task (or a child) that set `current_context`."""

    def __init__(self, llm: AsyncLLM) -> None:
        self._llm = llm
        self._lockstep = Lockstep(llm)

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
        """The member's stream when one speaks alone; the fused stream; or one output, the answer that most agree on."""
        context = current_context.get()
        if len(context.runs) == 1:
            answer = self._alone(context, prompt, sampling_params, request_id, kwargs)
        elif context.fusion is None:
            answer = self._vote(context, prompt, sampling_params, request_id, kwargs)
        else:
            answer = self._fuse(
                context, context.fusion, prompt, sampling_params, request_id, kwargs
            )
        requests = len(context.runs) * sampling_params.n
        with context.generating():
            async with context.line.place(requests), aclosing(answer):
                async for output in answer:
                    # usage and echo are about the prompt that the client sent, whatever a member read
                    output.prompt, output.prompt_token_ids = None, prompt.get("prompt_token_ids")
                    yield output

    async def _alone(
        self,
        context: GenerationContext,
        prompt: Mapping[str, Any],
        params: SamplingParams,
        request_id: str,
        kwargs: Mapping[str, Any],
    ) -> AsyncGenerator[RequestOutput, None]:
        (run,) = context.runs
        stream = self._stream(context, run, prompt, params, request_id, kwargs)
        async with aclosing(stream):
            async for output in stream:
                tokens = sum(len(choice.token_ids) for choice in output.outputs)
                metrics.tokens_generated(context.ensemble.name, tokens, tokens)
                yield output

    async def _fuse(
        self,
        context: GenerationContext,
        fusion: TokenFusion,
        prompt: Mapping[str, Any],
        params: SamplingParams,
        request_id: str,
        kwargs: Mapping[str, Any],
    ) -> AsyncGenerator[RequestOutput, None]:
        parts = [
            Part(run.member_adapters, context.prompts.get(run.name, prompt)) for run in context.runs
        ]
        context.member_tokens += sum(part.length for part in parts)
        nats: defaultdict[int, list[float]] = defaultdict(list)
        pieces = self._lockstep.generate(
            parts,
            fusion,
            params,
            request_id,
            members=context.return_members,
            clamp=context.open_end,
            options=kwargs,
        )
        async with aclosing(pieces):
            async for piece in pieces:
                tokens = sum(len(choice.token_ids) for choice in piece.output.outputs)
                context.member_tokens += tokens * len(parts)
                metrics.tokens_generated(context.ensemble.name, tokens, tokens * len(parts))
                for choice, report in piece.reports.items():
                    context.reports[request_id, choice].append(report)
                    nats[choice] += report.disagreement
                yield piece.output
        metrics.disagreement_seen(
            context.ensemble.name, [sum(each) / len(each) for each in nats.values() if each]
        )

    async def _vote(
        self,
        context: GenerationContext,
        prompt: Mapping[str, Any],
        params: SamplingParams,
        request_id: str,
        kwargs: Mapping[str, Any],
    ) -> AsyncGenerator[RequestOutput, None]:
        outputs = await together(
            self._whole_answer(context, run, prompt, params, request_id, kwargs)
            for run in context.runs
        )
        failed = [each for each in outputs if each.outputs[0].finish_reason == "error"]
        if failed:  # vLLM's serving says so to the client; an empty text is no vote
            failed[0].request_id = request_id
            yield failed[0]
            return
        answers = [output.outputs[0].text for output in outputs]
        verdict = vote_answers(context.ensemble, answers, context.weights)
        context.votes[request_id] = (verdict, answers)
        lengths = [len(output.outputs[0].token_ids) for output in outputs]
        prompts = [context.prompts.get(run.name, prompt) for run in context.runs]
        prompt_tokens = sum(len(each["prompt_token_ids"]) for each in prompts)
        context.member_tokens += sum(lengths) + prompt_tokens
        metrics.tokens_generated(context.ensemble.name, lengths[verdict.winner], sum(lengths))
        winner = outputs[verdict.winner]
        winner.request_id = request_id
        yield winner

    async def _whole_answer(
        self,
        context: GenerationContext,
        run: MemberRun,
        prompt: Mapping[str, Any],
        params: SamplingParams,
        request_id: str,
        kwargs: Mapping[str, Any],
    ) -> RequestOutput:
        params = params.clone()
        params.output_kind = RequestOutputKind.FINAL_ONLY
        last = None
        own_id = f"{request_id}-{run.name}"
        async for output in self._stream(context, run, prompt, params, own_id, kwargs):
            last = output
        assert last is not None, "vLLM ends every request with an output"
        return last

    async def _stream(
        self,
        context: GenerationContext,
        run: MemberRun,
        prompt: Mapping[str, Any],
        params: SamplingParams,
        request_id: str,
        kwargs: Mapping[str, Any],
    ) -> AsyncGenerator[RequestOutput, None]:
        """One member's stream by itself."""
        member_adapters = run.member_adapters
        prompt = context.prompts.get(run.name, prompt)
        longest = self._llm.model_config.max_model_len
        params = member_adapters.fitted(
            params, len(prompt["prompt_token_ids"]), longest, clamp=context.open_end
        )
        stream = self._llm.generate(
            member_adapters.prompt(prompt),
            member_adapters.params(params),
            request_id,
            lora_request=member_adapters.lora,
            **kwargs,
        )
        async with aclosing(stream):
            async for output in stream:
                if output.prompt_logprobs and member_adapters.virtual_tokens:
                    own = output.prompt_logprobs[member_adapters.virtual_tokens + 1 :]
                    output.prompt_logprobs = [None, *own]
                yield output


EngineClient.register(EnsembleClient)

"""One request as a group of siblings, and their one voice as one stream."""

import secrets
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from vllm import SamplingParams
from vllm.exceptions import VLLMValidationError
from vllm.outputs import RequestOutput
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError

from serve import metrics
from serve.engine.adapters.member_adapters import MemberAdapters, too_long
from serve.engine.lockstep.group import ACCOUNT
from serve.engine.lockstep.logprobs import TokenReport, read
from serve.engine.lockstep.sibling_spec import SiblingSpec, TokenFusion
from serve.fusion.tokens.penalties import Penalties
from serve.fusion.tokens.sampling import Sampling
from serve.together import merged

REPORT_COLUMNS = 65
"""Room for the disagreement and 64 members beside the log-probabilities that a client may ask for."""

_REFUSED: Mapping[str, str] = {
    "prompt_logprobs": "log-probabilities of the prompt are each member's own",
    "prompt_logprob_token_ids": "log-probabilities of the prompt are each member's own",
    "logprob_token_ids": "log-probabilities of chosen tokens are not fused",
    "thinking_token_budget": "vLLM applies it after the members are fused",
    "watermarking": "vLLM applies it after the members are fused",
}


@dataclass(frozen=True)
class Part:
    """One member's part: its adapters, and the prompt that it is given (as vLLM renders one)."""

    member_adapters: MemberAdapters
    prompt: Mapping[str, Any]

    @property
    def length(self) -> int:
        """Tokens of the prompt."""
        return len(self.prompt["prompt_token_ids"])

    @property
    def places(self) -> int:
        """Places of the context that the prompt and the virtual tokens before it take."""
        return self.length + self.member_adapters.virtual_tokens


@dataclass(frozen=True)
class Spoken:
    """The next piece of a fused answer."""

    output: RequestOutput
    reports: Mapping[int, TokenReport] = field(default_factory=dict)
    """Choice -> what the members thought of the piece's tokens, if that was asked for."""


class Lockstep:
    """Runs groups on an engine whose scheduler, processor and sampler know about them."""

    def __init__(self, llm: AsyncLLM) -> None:
        self._llm = llm

    async def generate(
        self,
        parts: Sequence[Part],
        fusion: TokenFusion,
        params: SamplingParams,
        request_id: str,
        *,
        members: bool = False,
        clamp: bool = False,
        options: Mapping[str, Any],
    ) -> AsyncGenerator[Spoken, None]:
        """The fused answer of `parts`, one a member, in vLLM's own pieces: `n` choices are `n` groups.

        `clamp`: `max_tokens` is a default, to be lowered to what there is room for. `options` go to vLLM with every
        request. Raises VLLMValidationError (a 400) for what a group cannot honour or the engine has no room for."""
        self._refuse(params)
        params = self._fitted(parts, params, clamp)
        seed = secrets.randbits(62) if params.seed is None else params.seed
        groups = [
            self._group(
                parts, fusion, params, f"{request_id}-{index}", seed + index, members, options
            )
            for index in range(params.n)
        ]
        done = 0
        whole: list[Spoken] = []
        async with aclosing(merged(groups)) as pieces:
            async for index, piece in pieces:
                output = piece.output
                done += output.finished
                output.request_id = request_id
                output.outputs[0].index = index
                output.finished = done == params.n
                piece = Spoken(output, dict(zip([index], piece.reports.values(), strict=False)))
                if params.n > 1 and params.output_kind == RequestOutputKind.FINAL_ONLY:
                    whole.append(piece)
                else:
                    yield piece
        if whole:
            yield _together(whole)

    async def _group(
        self,
        parts: Sequence[Part],
        fusion: TokenFusion,
        params: SamplingParams,
        key: str,
        seed: int,
        members: bool,
        options: Mapping[str, Any],
    ) -> AsyncGenerator[Spoken, None]:
        """One choice. However it ends, no sibling is left in the engine."""
        leader = SiblingSpec(
            group=f"{key}-{secrets.token_hex(4)}",  # the id may be the client's, and used twice
            size=len(parts),
            rank=0,
            fusion=fusion,
            sampling=Sampling(params.temperature, params.top_k, params.top_p, params.min_p, seed),
            penalties=Penalties(
                params.repetition_penalty, params.frequency_penalty, params.presence_penalty
            ),
            top=params.logprobs,
            members=members,
        )
        ids = [f"{leader.group}-{rank}" for rank in range(len(parts))]
        running = False
        try:
            queues = []
            for rank, (id_, part) in enumerate(zip(ids, parts, strict=True)):
                running = True
                queues.append(
                    await self._llm.add_request(
                        id_,
                        part.member_adapters.prompt(part.prompt),
                        part.member_adapters.params(_sibling(params, leader, rank)),
                        lora_request=part.member_adapters.lora,
                        **options,
                    )
                )
            while running:
                # followers say nothing but that they ended
                output = queues[0].get_nowait() or await queues[0].get()
                assert isinstance(output, RequestOutput)
                running = not output.finished
                yield _heard(output, leader)
        except EngineDeadError:
            running = False
            raise
        finally:
            if running:
                await self._llm.abort(ids)

    def _refuse(self, params: SamplingParams) -> None:
        for name, why in _REFUSED.items():
            if getattr(params, name) is not None and getattr(params, name) is not False:
                raise VLLMValidationError(
                    f"{name!r} cannot be honoured when members are fused at every token: {why}.",
                    parameter=name,
                )
        most = self._llm.model_config.max_logprobs
        if params.logprobs is None or (most < 0 <= params.logprobs):
            return
        if not 0 <= params.logprobs <= most - REPORT_COLUMNS:
            raise VLLMValidationError(
                f"'logprobs' of a fused answer may be 0 to {most - REPORT_COLUMNS}, not {params.logprobs}.",
                parameter="logprobs",
            )

    def _fitted(self, parts: Sequence[Part], params: SamplingParams, clamp: bool) -> SamplingParams:
        """With no more `max_tokens` than the member with the longest prompt has context for."""
        context = self._llm.model_config.max_model_len
        longest = max(parts, key=lambda part: part.places)
        room = context - longest.places
        if clamp:
            cache = self._llm.vllm_config.cache_config
            share = (cache.num_gpu_blocks - 1) // len(parts) * cache.block_size
            room = min(room, max(share - longest.places, 1))
        asked = params.max_tokens
        if room < 1 or (asked is not None and asked > room and not clamp):
            left = context - longest.member_adapters.virtual_tokens
            raise VLLMValidationError(too_long(longest.length, left), parameter="max_tokens")
        params = params.clone()
        params.max_tokens = room if asked is None else min(asked, room)
        return params


def _sibling(params: SamplingParams, leader: SiblingSpec, rank: int) -> SamplingParams:
    """What one member's request asks of vLLM: the choice of a token, and all that bears on it, is the processor's."""
    own = params.clone()
    own.n = 1
    own.temperature, own.top_k, own.top_p, own.min_p, own.seed = 0.0, 0, 1.0, 0.0, None
    own.__dict__.pop("sampling_type", None)  # cached from before
    own.repetition_penalty, own.frequency_penalty, own.presence_penalty = 1.0, 0.0, 0.0
    spec = SiblingSpec(**{**vars(leader), "rank": rank})
    spec.place(own)
    own.logprobs = spec.columns if rank == 0 else None
    if rank > 0:
        own.output_kind = RequestOutputKind.FINAL_ONLY
        own.detokenize = False
        own.stop = []
    return own


def _heard(output: RequestOutput, spec: SiblingSpec) -> Spoken:
    """The leader's output as the group's, whose stalls are counted when it ends. Raises VLLMValidationError if Choir
    ended it."""
    account = (output.kv_transfer_params or {}).get(ACCOUNT) or {}
    output.kv_transfer_params = None
    for reason, count in account.get("stalls", {}).items():
        metrics.group_stalled(reason, count)
    if account.get("error"):
        raise VLLMValidationError(account["error"])
    choice = output.outputs[0]
    reports = {}
    if spec.members and choice.logprobs is not None:
        fused, reports[0] = read(choice.logprobs, spec)
        choice.logprobs = fused if spec.top is not None else None
        choice.cumulative_logprob = choice.cumulative_logprob if spec.top is not None else None
    return Spoken(output, reports)


def _together(pieces: Sequence[Spoken]) -> Spoken:
    """Whole choices as one output."""
    ordered = sorted(pieces, key=lambda piece: piece.output.outputs[0].index)
    output = ordered[0].output
    output.outputs = [piece.output.outputs[0] for piece in ordered]
    output.finished = True
    reports = {index: report for piece in ordered for index, report in piece.reports.items()}
    return Spoken(output, reports)

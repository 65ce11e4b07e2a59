"""Runs one request as a group of siblings, and returns their fused outputs as one stream."""

import secrets
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from itertools import takewhile
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
from serve.engine.shared_prompt.computed import taken
from serve.fusion.tokens.penalties import Penalties
from serve.fusion.tokens.sampling import Sampling
from serve.together import merged

REPORT_COLUMNS = 65
"""Columns for the disagreement and 64 members, beside the log-probabilities that a client may ask for."""

_REFUSED: Mapping[str, str] = {
    "prompt_logprob_token_ids": "log-probabilities of chosen tokens are not fused",
    "logprob_token_ids": "log-probabilities of chosen tokens are not fused",
    "thinking_token_budget": "vLLM applies it after the members are fused",
    "watermarking": "vLLM applies it after the members are fused",
}


@dataclass(frozen=True)
class MemberPrompt:
    """One member's adapters, and the prompt that it reads (as vLLM renders it)."""

    member_adapters: MemberAdapters
    prompt: Mapping[str, Any]

    @property
    def length(self) -> int:
        """Tokens of the prompt."""
        return len(self.prompt["prompt_token_ids"])

    @property
    def shared(self) -> int:
        """Tokens at the prompt's beginning that members may share, because the base reads them."""
        return self.member_adapters.base_reads(self.prompt["prompt_token_ids"])

    @property
    def positions(self) -> int:
        """Positions of the context that the prompt and its virtual tokens take."""
        return self.length + self.member_adapters.virtual_tokens


@dataclass(frozen=True)
class FusedPiece:
    """The next piece of a fused answer."""

    output: RequestOutput
    reports: Mapping[int, TokenReport] = field(default_factory=dict)
    """Choice -> the members' report about the piece's tokens, if the call asked for it."""
    computed_tokens: int = 0
    """What the engine computed for a choice that has ended with this piece, over all members."""


class Lockstep:
    """Runs groups on an engine that has Choir's scheduler, logits processor and sampler."""

    def __init__(self, llm: AsyncLLM) -> None:
        self._llm = llm

    async def generate(
        self,
        members: Sequence[MemberPrompt],
        fusion: TokenFusion,
        params: SamplingParams,
        request_id: str,
        *,
        report_members: bool = False,
        clamp: bool = False,
        options: Mapping[str, Any],
    ) -> AsyncGenerator[FusedPiece, None]:
        """Yields the fused answer of the members, in vLLM's own pieces. Each of the `n` choices is a group.

        `clamp`: lower `max_tokens` to what there is room for, because the client did not choose it. `options` go to
        vLLM with every request. Raises VLLMValidationError (a 400) if a group cannot honour a parameter, or if the
        engine has no room for the group."""
        self._refuse(params)
        if params.prompt_logprobs is not None:
            _check_one_prompt(members)
        params = self._fitted(members, params, clamp)
        seed = secrets.randbits(62) if params.seed is None else params.seed
        groups = [
            self._group(
                members,
                SiblingSpec(
                    # The request id may be the client's, and the client may use it twice.
                    group=f"{request_id}-{index}-{secrets.token_hex(4)}",
                    size=len(members),
                    rank=0,
                    fusion=fusion,
                    sampling=_sampling(params, seed + index),
                    penalties=_penalties(params),
                    top=params.logprobs,
                    report_members=report_members,
                ),
                params,
                options,
            )
            for index in range(params.n)
        ]
        done = 0
        whole: list[FusedPiece] = []
        async with aclosing(merged(groups)) as pieces:
            async for index, piece in pieces:
                output = piece.output
                done += output.finished
                output.request_id = request_id
                output.outputs[0].index = index
                output.finished = done == params.n
                reports = dict(zip([index], piece.reports.values(), strict=False))
                piece = FusedPiece(output, reports, piece.computed_tokens)
                if params.n > 1 and params.output_kind == RequestOutputKind.FINAL_ONLY:
                    whole.append(piece)
                else:
                    yield piece
        if whole:
            yield _joined(whole)

    async def _group(
        self,
        members: Sequence[MemberPrompt],
        leader: SiblingSpec,
        params: SamplingParams,
        options: Mapping[str, Any],
    ) -> AsyncGenerator[FusedPiece, None]:
        """Yields one choice. However it ends, it leaves no sibling in the engine."""
        ids = [f"{leader.group}-{rank}" for rank in range(leader.size)]
        running = False
        try:
            queues = []
            for rank, (id_, member) in enumerate(zip(ids, members, strict=True)):
                running = True
                queues.append(
                    await self._llm.add_request(
                        id_,
                        member.member_adapters.prompt(member.prompt),
                        member.member_adapters.params(_sibling(params, leader, rank)),
                        lora_request=member.member_adapters.lora,
                        **options,
                    )
                )
            while running:
                # Only the leader has tokens to tell; the followers' queues say that they ended.
                output = queues[0].get_nowait() or await queues[0].get()
                assert isinstance(output, RequestOutput)
                running = not output.finished
                yield _fused_piece(output, leader)
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
        most = self._llm.model_config.max_logprobs - REPORT_COLUMNS
        limited = self._llm.model_config.max_logprobs >= 0
        for name in ("logprobs", "prompt_logprobs"):
            asked = getattr(params, name)
            if asked is not None and (asked < 0 or (limited and asked > most)):
                allowed = f"0 to {most}" if limited else "0 or more"
                raise VLLMValidationError(
                    f"{name!r} of a fused answer may be {allowed}, not {asked}.", parameter=name
                )

    def _fitted(
        self, members: Sequence[MemberPrompt], params: SamplingParams, clamp: bool
    ) -> SamplingParams:
        """Returns `params` with no more `max_tokens` than fit after the longest prompt.

        Raises VLLMValidationError if they do not fit; lowers them instead where `clamp` is set."""
        context = self._llm.model_config.max_model_len
        longest = max(members, key=lambda member: member.positions)
        room = context - longest.positions
        if clamp:
            cache = self._llm.vllm_config.cache_config
            left = _cache_left(members, cache.num_gpu_blocks - 1, cache.block_size)
            room = min(room, max(left, 1))
        asked = params.max_tokens
        if room < 1 or (asked is not None and asked > room and not clamp):
            left = context - longest.member_adapters.virtual_tokens
            raise VLLMValidationError(too_long(longest.length, left), parameter="max_tokens")
        params = params.clone()
        params.max_tokens = room if asked is None else min(asked, room)
        return params


def _check_one_prompt(members: Sequence[MemberPrompt]) -> None:
    """Raises VLLMValidationError if the members read different prompts, whose tokens have no fused probability."""
    first, *others = (list(member.prompt["prompt_token_ids"]) for member in members)
    if any(other != first for other in others):
        raise VLLMValidationError(
            "Log-probabilities of the prompt are fused where all members read the same prompt, and here they read "
            "different ones: leave out 'prompt_logprobs' and 'echo' with 'logprobs', or give all members one prompt.",
            parameter="prompt_logprobs",
        )


def _cache_left(members: Sequence[MemberPrompt], blocks: int, size: int) -> int:
    """Returns how many tokens each member can write until the KV cache is full. What several members share counts once.

    `blocks`, `size`: the blocks of the cache, and the tokens in one."""
    longest = max(member.positions for member in members)
    sharing = [member for member in members if member.shared]
    common = 0
    if len(sharing) > 1:
        prompts = [member.prompt["prompt_token_ids"][: member.shared] for member in sharing]
        common = sum(1 for _ in takewhile(_equal, zip(*prompts, strict=False))) // size
    alone = len(members) - len(sharing)
    left = blocks - common * (1 + alone)
    return (left // len(members) + common) * size - longest


def _equal(tokens: Sequence[int]) -> bool:
    return len(set(tokens)) == 1


def _sampling(params: SamplingParams, seed: int) -> Sampling:
    return Sampling(params.temperature, params.top_k, params.top_p, params.min_p, seed)


def _penalties(params: SamplingParams) -> Penalties:
    return Penalties(params.repetition_penalty, params.frequency_penalty, params.presence_penalty)


def _sibling(params: SamplingParams, leader: SiblingSpec, rank: int) -> SamplingParams:
    """Returns the sampling parameters of one sibling.

    They are neutral, because the logits processor chooses the token and applies the client's parameters."""
    own = params.clone()
    own.n = 1
    own.temperature, own.top_k, own.top_p, own.min_p, own.seed = 0.0, 0, 1.0, 0.0, None
    own.__dict__.pop("sampling_type", None)  # cached by vLLM for the old values
    own.repetition_penalty, own.frequency_penalty, own.presence_penalty = 1.0, 0.0, 0.0
    spec = SiblingSpec(**{**vars(leader), "rank": rank})
    spec.write_to(own)
    own.logprobs = spec.columns if rank == 0 else None
    if rank > 0:
        if own.prompt_logprobs is not None:
            own.prompt_logprobs = (
                0  # so that it reads the whole prompt; the leader has what is told
            )
        own.output_kind = RequestOutputKind.FINAL_ONLY
        own.detokenize = False
        own.stop = []
    return own


def _fused_piece(output: RequestOutput, spec: SiblingSpec) -> FusedPiece:
    """Returns the leader's output as a piece of the group's answer. Counts the group's stalls when it has ended.

    Raises VLLMValidationError if Choir itself ended the group."""
    computed = taken(output)
    account = (output.kv_transfer_params or {}).get(ACCOUNT) or {}
    output.kv_transfer_params = None
    for reason, count in account.get("stalls", {}).items():
        metrics.group_stalled(reason, count)
    if account.get("error"):
        raise VLLMValidationError(account["error"])
    choice = output.outputs[0]
    reports = {}
    if spec.report_members and choice.logprobs is not None:
        fused, reports[0] = read(choice.logprobs, spec)
        choice.logprobs = fused if spec.top is not None else None
        choice.cumulative_logprob = choice.cumulative_logprob if spec.top is not None else None
    return FusedPiece(output, reports, computed)


def _joined(pieces: Sequence[FusedPiece]) -> FusedPiece:
    """Returns whole choices as one output."""
    ordered = sorted(pieces, key=lambda piece: piece.output.outputs[0].index)
    output = ordered[0].output
    output.outputs = [piece.output.outputs[0] for piece in ordered]
    output.finished = True
    reports = {index: report for piece in ordered for index, report in piece.reports.items()}
    return FusedPiece(output, reports, sum(piece.computed_tokens for piece in pieces))

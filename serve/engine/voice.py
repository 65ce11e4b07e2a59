"""The engine client that vLLM's own OpenAI serving runs on: its `generate()` answers with an ensemble's one voice."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from vllm import SamplingParams
from vllm.engine.protocol import EngineClient
from vllm.lora.request import LoRARequest
from vllm.outputs import RequestOutput
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.async_llm import AsyncLLM

from serve.fusion.answers import AnswerVote, vote_answers
from serve.manifest import Ensemble


@dataclass(frozen=True)
class Speaker:
    """A member, ready to generate."""

    name: str
    adapter: LoRARequest | None


@dataclass
class Voice:
    """Who answers one OpenAI call, and, once it is answered, what each member said."""

    model: str
    """The name that the answer carries."""
    ensemble: Ensemble
    weights: Mapping[str, float] | None
    """The request's, by member."""
    speakers: Sequence[Speaker]
    count_tokens: Callable[[int, int], None]
    """Told the user's tokens and all members' tokens as they are generated."""
    votes: dict[str, tuple[AnswerVote, Sequence[str]]] = field(default_factory=dict)
    """vLLM's request id -> the verdict and every member's whole answer."""
    member_tokens: int = 0


speaking: ContextVar[Voice] = ContextVar("speaking")


class VoiceClient:
    """vLLM's engine client with `generate()` replaced; everything else is the engine's own.

    vLLM's serving code calls it in the task (or a child) that set `speaking`."""

    def __init__(self, llm: AsyncLLM) -> None:
        self._llm = llm

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
        """The member's stream when one speaks alone; else one output, the answer that most members agree on."""
        voice = speaking.get()
        if len(voice.speakers) > 1:
            yield await self._vote(voice, prompt, sampling_params, request_id, kwargs)
            return
        async for output in self._stream(
            voice.speakers[0], prompt, sampling_params, request_id, kwargs
        ):
            tokens = sum(len(choice.token_ids) for choice in output.outputs)
            voice.count_tokens(tokens, tokens)
            yield output

    async def _vote(
        self,
        voice: Voice,
        prompt: Mapping[str, Any],
        params: SamplingParams,
        request_id: str,
        kwargs: Mapping[str, Any],
    ) -> RequestOutput:
        outputs = await asyncio.gather(
            *(
                self._whole_answer(speaker, prompt, params, f"{request_id}-{speaker.name}", kwargs)
                for speaker in voice.speakers
            )
        )
        answers = [output.outputs[0].text for output in outputs]
        verdict = vote_answers(voice.ensemble, answers, voice.weights)
        voice.votes[request_id] = (verdict, answers)
        lengths = [len(output.outputs[0].token_ids) for output in outputs]
        prompt_tokens = sum(len(output.prompt_token_ids or ()) for output in outputs)
        voice.member_tokens += sum(lengths) + prompt_tokens
        voice.count_tokens(lengths[verdict.winner], sum(lengths))
        winner = outputs[verdict.winner]
        winner.request_id = request_id
        return winner

    async def _whole_answer(
        self,
        speaker: Speaker,
        prompt: Mapping[str, Any],
        params: SamplingParams,
        request_id: str,
        kwargs: Mapping[str, Any],
    ) -> RequestOutput:
        params = params.clone()
        params.output_kind = RequestOutputKind.FINAL_ONLY
        last = None
        async for output in self._stream(speaker, prompt, params, request_id, kwargs):
            last = output
        assert last is not None, "vLLM ends every request with an output"
        return last

    def _stream(
        self,
        speaker: Speaker,
        prompt: Mapping[str, Any],
        params: SamplingParams,
        request_id: str,
        kwargs: Mapping[str, Any],
    ) -> AsyncGenerator[RequestOutput, None]:
        """What one member generates, with its prefix cache apart from every other adapter's."""
        if speaker.adapter is not None:
            salts = (speaker.adapter.lora_name, prompt.get("cache_salt"))
            prompt = {**prompt, "cache_salt": ":".join(salt for salt in salts if salt)}
        return self._llm.generate(
            prompt, params, request_id, lora_request=speaker.adapter, **kwargs
        )


EngineClient.register(VoiceClient)

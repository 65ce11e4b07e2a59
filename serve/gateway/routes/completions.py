"""`POST /v1/completions` and `/v1/chat/completions`: OpenAI's routes, answered by vLLM's own code
in the engine."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Literal

from fastapi import APIRouter, Request
from starlette.responses import Response

from serve import metrics
from serve.agents.routes import Target
from serve.engine.interface import GenerateCall, Refusal
from serve.gateway.dispatch.dispatch import Dispatcher
from serve.gateway.dispatch.mirror import Mirror, asked_too
from serve.gateway.http.body import BodyReader, validated
from serve.gateway.http.errors import refused
from serve.gateway.http.observe import exchange_of
from serve.gateway.http.openapi import INFERENCE_ERRORS, described
from serve.gateway.http.schemas import GenerateFusion, GenerateRequest
from serve.gateway.links import EngineLink
from serve.gateway.routes.stream import EventStream, Parts
from serve.gateway.routes.transcript import Recorded, Transcript, agreement

COMPLETIONS_PATH = "/v1/completions"
CHAT_PATH = "/v1/chat/completions"
PATHS = {"completions": COMPLETIONS_PATH, "chat": CHAT_PATH}


@dataclass(frozen=True)
class Begun:
    """An answer whose first part has come, so that it is known not to be a refusal."""

    first: bytes
    rest: Parts


def completions_router(
    engines: EngineLink,
    dispatcher: Dispatcher,
    mirror: Mirror,
    bodies: BodyReader,
    max_inputs: int,
) -> APIRouter:
    router = APIRouter()

    @router.post(
        COMPLETIONS_PATH,
        **described("Complete a prompt", INFERENCE_ERRORS, body=GenerateRequest, streams=True),
    )
    async def complete(request: Request) -> Response:
        return await generate(request, "completions")

    @router.post(
        CHAT_PATH,
        **described("Answer a conversation", INFERENCE_ERRORS, body=GenerateRequest, streams=True),
    )
    async def chat(request: Request) -> Response:
        return await generate(request, "chat")

    async def generate(request: Request, route: Literal["completions", "chat"]) -> Response:
        body = await bodies.object(request)
        fields = validated(GenerateRequest, body)
        check_answers(body, max_inputs)
        body.pop("fusion", None)
        fusion = fields.fusion or GenerateFusion()
        exchange = exchange_of(request)

        async def ask(target: Target) -> Begun | Refusal:
            call = GenerateCall(
                version=target.key,
                route=route,
                body=body,
                request_id=exchange.request_id,
                member=target.member,
                method=fusion.method,
                weights=fusion.weights,
                prompts=fusion.prompts,
                plausibility=fusion.plausibility,
                return_members=fusion.return_members,
                trace_headers=exchange.trace_headers,
            )
            parts = engines.generate(call)
            return await (_begin(parts) if fields.stream else _whole(parts))

        user = body.get("user")
        target, begun = await dispatcher.ask(
            request, fields.model, ask, user if isinstance(user, str) else None
        )
        other = asked_too(target)
        if other is not None:
            begun, said = _recorded(begun)

            async def compare(again: Begun) -> float | None:
                return agreement(said, await _read(again), target.ensemble, body)

            mirror.after(exchange, other, PATHS[route], ask, compare)
        if fields.stream:
            metrics.first_token_sent(exchange.ensemble, exchange.seconds)
            return EventStream(begun.first, begun.rest, exchange.request_id)
        return Response(begun.first, media_type="application/json")

    return router


def check_answers(body: dict[str, Any], most: int) -> None:
    """Raises RefusedError (400) for more than `most` answers to one request: `n` for each prompt. Values of a wrong
    type are left to the engine."""
    given, n = body.get("prompt"), body.get("n")
    prompts = (
        len(given) if isinstance(given, list) and given and not isinstance(given[0], int) else 1
    )
    each = n if isinstance(n, int) else 1
    if prompts * each > most:
        raise refused(
            400,
            f"{prompts:,} prompts with {each:,} answers each are more than the {most:,} that one request may have; "
            "send them in several.",
            param="prompt" if prompts > 1 else "n",
        )


async def _begin(parts: AsyncGenerator[bytes | Refusal, None]) -> Begun | Refusal:
    """The first part, and the rest to come."""
    try:
        first = await anext(parts)
    except BaseException:
        await parts.aclose()
        raise
    if isinstance(first, Refusal):
        await parts.aclose()
        return first
    return Begun(first, parts)


def _recorded(begun: Begun) -> tuple[Begun, Transcript]:
    """The same answer, and what it has said by the time that the client has it."""
    said = Transcript()
    said.add(begun.first)
    return Begun(begun.first, Recorded(begun.rest, said)), said


async def _read(begun: Begun) -> Transcript:
    """All that an answer says."""
    begun, said = _recorded(begun)
    async with aclosing(begun.rest):
        async for _ in begun.rest:
            pass
    return said


async def _whole(parts: AsyncGenerator[bytes | Refusal, None]) -> Begun | Refusal:
    """All parts as one document; a long one may come in several."""
    received = []
    async with aclosing(parts):
        async for part in parts:
            if isinstance(part, Refusal):
                return part
            received.append(part)
    return Begun(b"".join(received), parts)

"""`POST /v1/completions`, `/v1/chat/completions` and `/v1/responses`: OpenAI's routes. vLLM's own code in the engine
answers them."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from serve import metrics
from serve.agents.routes import Target
from serve.engine.interface import GenerateCall, Route
from serve.errors import Refusal, RefusedError
from serve.gateway.dispatch.dispatch import Dispatcher
from serve.gateway.dispatch.mirror import Mirror, asked_too
from serve.gateway.dispatch.outcome import Answer
from serve.gateway.dispatch.transcript import Recorded, Transcript, agreement
from serve.gateway.http.body import BodyReader, validated
from serve.gateway.http.observe import exchange_of
from serve.gateway.http.openapi import INFERENCE_ERRORS, described
from serve.gateway.http.schemas import GenerateFusion, GenerateRequest
from serve.gateway.http.stream import EventStream
from serve.gateway.links import EngineLink, Unavailable

COMPLETIONS_PATH = "/v1/completions"
CHAT_PATH = "/v1/chat/completions"
RESPONSES_PATH = "/v1/responses"
NOTHING = "The engine ended its answer before it began; try again."
PATHS: dict[Route, str] = {
    "completions": COMPLETIONS_PATH,
    "chat": CHAT_PATH,
    "responses": RESPONSES_PATH,
}


def completions_router(
    engines: EngineLink,
    dispatcher: Dispatcher,
    mirror: Mirror,
    bodies: BodyReader,
    max_inputs: int,
) -> APIRouter:
    """Return the routes of OpenAI's API. One request may ask for at most `max_inputs` answers."""
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

    @router.post(
        RESPONSES_PATH,
        **described("Answer an input", INFERENCE_ERRORS, body=GenerateRequest, streams=True),
    )
    async def respond(request: Request) -> Response:
        return await generate(request, "responses")

    async def generate(request: Request, route: Route) -> Response:
        body = await bodies.object(request)
        fields = validated(GenerateRequest, body)
        answers = count_answers(body, max_inputs)
        body.pop("fusion", None)
        fusion = fields.fusion or GenerateFusion()
        if route == "responses":
            _check_response(fusion)
        exchange = exchange_of(request)

        async def ask(target: Target) -> Answer[bytes] | Refusal:
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
                pool=target.pool,
                seconds_left=exchange.time_for(target),
            )
            parts = engines.generate(call)
            return await (_begin(parts) if fields.stream else whole(parts))

        user = body.get("user")
        target, begun = await dispatcher.ask(
            request, fields.model, ask, answers, user if isinstance(user, str) else None
        )
        other = asked_too(target)
        if other is not None:
            begun, said = _recorded(begun)

            async def compare(again: Answer[bytes]) -> float | None:
                return agreement(said, await _read(again), target.ensemble, body)

            mirror.after(exchange, other, PATHS[route], ask, compare)
        if begun.rest is not None:
            metrics.first_token_sent(exchange.ensemble, exchange.seconds)
            return EventStream(begun.said, begun.rest, exchange.request_id, exchange.seconds_left)
        return Response(begun.said, media_type="application/json")

    return router


def _check_response(fusion: GenerateFusion) -> None:
    """Raises RefusedError (400) for what `fusion` may ask of the other routes only."""
    for name in ("prompts", "return_members"):
        if getattr(fusion, name):
            raise RefusedError(
                400,
                f"'fusion.{name}' is for {COMPLETIONS_PATH} and {CHAT_PATH}; leave it out of {RESPONSES_PATH}.",
                param=f"fusion.{name}",
            )


def count_answers(body: dict[str, Any], most: int) -> int:
    """Return how many answers a request asks for: `n` for each prompt, and at least 1.

    Leaves values of a wrong type to the engine. Raises RefusedError (400) for more than `most`."""
    given, n = body.get("prompt"), body.get("n")
    prompts = (
        len(given) if isinstance(given, list) and given and not isinstance(given[0], int) else 1
    )
    each = n if isinstance(n, int) else 1
    if prompts * each > most:
        raise RefusedError(
            400,
            f"{prompts:,} prompts with {each:,} answers each are more than the {most:,} answers that one request may "
            "have; send several requests.",
            param="prompt" if prompts > 1 else "n",
        )
    return max(1, prompts * each)


async def _begin(parts: AsyncGenerator[bytes | Refusal, None]) -> Answer[bytes] | Refusal:
    """Return the first part as the answer, with the rest of the stream. Raises Unavailable if there is no part."""
    try:
        first = await anext(parts, None)
    except BaseException:
        await parts.aclose()
        raise
    if first is None:
        raise Unavailable(NOTHING)
    if isinstance(first, Refusal):
        await parts.aclose()
        return first
    return Answer(first, parts)


def _recorded(begun: Answer[bytes]) -> tuple[Answer[bytes], Transcript]:
    """Return the same answer, and a transcript that fills as the answer is read."""
    said = Transcript()
    said.add(begun.said)
    if begun.rest is None:
        return begun, said
    return replace(begun, rest=Recorded(begun.rest, said)), said


async def _read(begun: Answer[bytes]) -> Transcript:
    """Read an answer to its end and return its transcript. Raises the exception that breaks it off."""
    begun, said = _recorded(begun)
    if begun.rest is not None:
        async with aclosing(begun.rest):
            async for _ in begun.rest:
                pass
    return said


async def whole(parts: AsyncGenerator[bytes | Refusal, None]) -> Answer[bytes] | Refusal:
    """Return all parts joined as one document: a long document arrives in several. Raises Unavailable if there is no
    part."""
    received = []
    async with aclosing(parts):
        async for part in parts:
            if isinstance(part, Refusal):
                return part
            received.append(part)
    if not received:
        raise Unavailable(NOTHING)
    return Answer(b"".join(received))

"""`POST /tokenize` and `/detokenize`: what a model reads of a text, as vLLM's routes say it."""

from fastapi import APIRouter, Request
from starlette.responses import Response

from serve.agents.routes import Target
from serve.engine.interface import GenerateCall, Route
from serve.errors import Refusal
from serve.gateway.dispatch.dispatch import Dispatcher
from serve.gateway.dispatch.outcome import Answer
from serve.gateway.http.body import BodyReader, validated
from serve.gateway.http.observe import exchange_of
from serve.gateway.http.openapi import INFERENCE_ERRORS, described
from serve.gateway.http.schemas import TokensRequest
from serve.gateway.links import EngineLink
from serve.gateway.routes.completions import whole

TOKENIZE_PATH = "/tokenize"
DETOKENIZE_PATH = "/detokenize"


def tokens_router(engines: EngineLink, dispatcher: Dispatcher, bodies: BodyReader) -> APIRouter:
    """Return the routes that ask a model's tokenizer."""
    router = APIRouter()

    @router.post(
        TOKENIZE_PATH,
        **described("Tokens of a text or a chat", INFERENCE_ERRORS, body=TokensRequest),
    )
    async def tokenize(request: Request) -> Response:
        return await ask(request, "tokenize")

    @router.post(
        DETOKENIZE_PATH, **described("Text of tokens", INFERENCE_ERRORS, body=TokensRequest)
    )
    async def detokenize(request: Request) -> Response:
        return await ask(request, "detokenize")

    async def ask(request: Request, route: Route) -> Response:
        body = await bodies.object(request)
        fields = validated(TokensRequest, body)
        exchange = exchange_of(request)

        async def of_version(target: Target) -> Answer[bytes] | Refusal:
            call = GenerateCall(
                version=target.key,
                route=route,
                body={name: value for name, value in body.items() if name != "stream"},
                request_id=exchange.request_id,
                member=target.member,
                trace_headers=exchange.trace_headers,
                pool=target.pool,
                seconds_left=exchange.time_for(target),
            )
            return await whole(engines.generate(call))

        _, answer = await dispatcher.ask(request, fields.model, of_version, 1)
        return Response(answer.said, media_type="application/json")

    return router

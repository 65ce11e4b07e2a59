"""`POST /v1/embeddings`: the vectors that an encoder base, or one of its members, makes of texts, as OpenAI's route."""

import base64
from time import time
from typing import Any

import numpy as np
from fastapi import APIRouter, Request
from numpy.typing import NDArray
from pydantic_core import to_json
from starlette.responses import Response

from serve.agents.routes import Target
from serve.engine.interface import EmbedCall, Embeddings
from serve.errors import Refusal, RefusedError
from serve.gateway.dispatch.dispatch import Dispatcher
from serve.gateway.dispatch.outcome import Answer
from serve.gateway.http.body import BodyReader, kind_of, validated
from serve.gateway.http.honoured import POOLING_DEFAULTS, check_honoured
from serve.gateway.http.observe import exchange_of
from serve.gateway.http.openapi import INFERENCE_ERRORS, described
from serve.gateway.http.schemas import EmbeddingsAnswer, EmbeddingsRequest
from serve.gateway.links import EngineLink
from serve.gateway.routes.classify import input_usage

PATH = "/v1/embeddings"
DEFAULTS = {
    **POOLING_DEFAULTS,
    "dimensions": (None,),
    "embed_dtype": (None, "float32"),
    "endianness": (None, "native", "little"),
}


def embeddings_router(
    engines: EngineLink, dispatcher: Dispatcher, bodies: BodyReader, max_inputs: int
) -> APIRouter:
    """Return the route of embeddings. One request may have at most `max_inputs` inputs."""
    router = APIRouter()

    @router.post(
        PATH,
        **described(
            "Vectors of texts", INFERENCE_ERRORS, body=EmbeddingsRequest, answer=EmbeddingsAnswer
        ),
    )
    async def embed(request: Request) -> Response:
        fields = await bodies.object(request)
        body = validated(EmbeddingsRequest, fields)
        check_honoured(fields, DEFAULTS)
        inputs = read_inputs(body.input, max_inputs)
        exchange = exchange_of(request)

        async def ask(target: Target) -> Answer[Embeddings] | Refusal:
            call = EmbedCall(
                version=target.key,
                inputs=inputs,
                request_id=exchange.request_id,
                member=target.member,
                normalize=body.use_activation is not False,
                trace_headers=exchange.trace_headers,
                pool=target.pool,
                seconds_left=exchange.time_for(target),
            )
            found = await engines.embed(call)
            return found if isinstance(found, Refusal) else Answer(found)

        target, given = await dispatcher.ask(request, body.model, ask, len(inputs), body.user)
        document = {
            "id": f"embd-{exchange.request_id}",
            "object": "list",
            "created": int(time()),
            "model": target.model,
            **answer(given.said, as_base64=body.encoding_format == "base64"),
        }
        return Response(to_json(document), media_type="application/json")

    return router


def read_inputs(value: object, most: int) -> tuple[str, ...] | tuple[tuple[int, ...], ...]:
    """Return the inputs in the field `input`: texts, or the token ids of texts.

    Raises RefusedError (400) if there are none or more than `most`, or one is empty or of another kind."""
    if isinstance(value, str):
        return (_text(value, "input"),)
    if not isinstance(value, list) or not value:
        what = kind_of(value) if not isinstance(value, list) else "an empty list"
        raise _wrong("input", f"must be a text, token ids, or a list of either, not {what}")
    if _is_number(value[0]):
        return (_tokens(value, "input"),)
    if len(value) > most:
        raise _wrong(
            "input",
            f"{len(value):,} inputs are more than the {most:,} that one request may have; send several requests",
        )
    if isinstance(value[0], list):
        return tuple(_tokens(each, f"input[{index}]") for index, each in enumerate(value))
    return tuple(_text(each, f"input[{index}]") for index, each in enumerate(value))


def answer(found: Embeddings, *, as_base64: bool) -> dict[str, Any]:
    """Return the vectors and the usage as OpenAI writes them."""
    vectors = found.vectors
    written = map(_base64, vectors) if as_base64 else vectors.tolist()
    data = [
        {"object": "embedding", "index": index, "embedding": vector}
        for index, vector in enumerate(written)
    ]
    return {"data": data, "usage": input_usage(found.prompt_tokens)}


def _base64(vector: NDArray[np.float32]) -> str:
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()


def _text(value: object, where: str) -> str:
    if not isinstance(value, str):
        raise _wrong(where, f"must be a text as the first input is, not {kind_of(value)}")
    if not value:
        raise _wrong(where, "the text is empty")
    return value


def _tokens(value: object, where: str) -> tuple[int, ...]:
    if not isinstance(value, list) or not value:
        raise _wrong(where, "must be a list of token ids as the first input is")
    if not all(_is_number(each) and each >= 0 for each in value):
        raise _wrong(where, "token ids must be whole numbers from 0 on")
    return tuple(value)


def _is_number(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _wrong(where: str, what: str) -> RefusedError:
    return RefusedError(400, f"{where}: {what}.", param="input")

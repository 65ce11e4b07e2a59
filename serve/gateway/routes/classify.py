"""`POST /classify`: labels in the shape of vLLM's own route, answered by an ensemble or by one of its members."""

from time import time
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from serve.agents.routes import Target
from serve.engine.interface import Prediction
from serve.errors import Refusal
from serve.fusion.fused import Fused
from serve.gateway.dispatch.predictor import Form, Predictor
from serve.gateway.http.body import BodyReader, validated
from serve.gateway.http.honoured import POOLING_DEFAULTS, check_honoured
from serve.gateway.http.observe import exchange_of
from serve.gateway.http.openapi import INFERENCE_ERRORS, described
from serve.gateway.http.schemas import ClassifyAnswer, ClassifyRequest
from serve.gateway.routes.completions import CHAT_PATH, COMPLETIONS_PATH
from serve.gateway.routes.predict import PATH as PREDICT_PATH
from serve.gateway.routes.predict import read_inputs

PATH = "/classify"
DEFAULTS = {**POOLING_DEFAULTS, "use_activation": (None, True)}


def classify_router(predictor: Predictor, bodies: BodyReader, max_inputs: int) -> APIRouter:
    """Return the route of vLLM's classification. One request may have at most `max_inputs` inputs."""
    router = APIRouter()

    @router.post(
        PATH,
        **described(
            "Labels, as vLLM writes them",
            INFERENCE_ERRORS,
            body=ClassifyRequest,
            answer=ClassifyAnswer,
        ),
    )
    async def classify(request: Request) -> Response:
        fields = await bodies.object(request)
        body = validated(ClassifyRequest, fields)
        check_honoured(fields, DEFAULTS)
        name = f"classify-{exchange_of(request).request_id}"
        created = int(time())

        def write(target: Target, prediction: Prediction) -> dict[str, Any]:
            head = {"id": name, "object": "list", "created": created, "model": target.model}
            return {**head, **answer(prediction)}

        return await predictor.answer(
            request,
            Form(PATH, write, refuse_other_tasks),
            body.model,
            read_inputs(body.input, max_inputs),
            user=body.user,
        )

    return router


def refuse_other_tasks(target: Target) -> Refusal | None:
    """Return why an ensemble cannot be asked here, and which route answers for it; None for classification."""
    task = target.ensemble.task
    if task == "classification":
        return None
    route = f"{CHAT_PATH} or {COMPLETIONS_PATH}" if task == "generation" else PREDICT_PATH
    return Refusal(
        400,
        f"The ensemble {target.ensemble.name!r} has the task {task}, and {PATH} answers classification: use {route}.",
        param="model",
    )


def answer(prediction: Prediction) -> dict[str, Any]:
    """Return the answers and the usage of vLLM's document."""
    labels, answers = prediction.labels, prediction.answers
    assert isinstance(answers, Fused), "other tasks are refused"
    data: list[dict[str, Any]] = [
        {"index": index, "label": labels[winner], "probs": probs, "num_classes": len(probs)}
        for index, (winner, probs) in enumerate(
            zip(answers.winners.tolist(), answers.probabilities.tolist(), strict=True)
        )
    ]
    if prediction.abstained is not None:
        for row, abstained in zip(data, prediction.abstained.tolist(), strict=True):
            row["abstained"] = abstained
    return {"data": data, "usage": input_usage(prediction.prompt_tokens)}


def input_usage(tokens: int) -> dict[str, Any]:
    """Return vLLM's usage of a request that reads `tokens` tokens and writes none."""
    return {
        "prompt_tokens": tokens,
        "total_tokens": tokens,
        "completion_tokens": 0,
        "prompt_tokens_details": None,
        "completion_tokens_details": None,
    }

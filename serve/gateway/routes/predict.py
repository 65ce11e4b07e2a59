"""`POST /v1/predict`: labels with probabilities, or values, for one input or many."""

from collections.abc import Sequence
from itertools import compress
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from serve.engine.interface import Prediction, Text
from serve.errors import RefusedError
from serve.fusion.fused import Answers, Fused, FusedSets, FusedValues
from serve.gateway.dispatch.predictor import Form, Predictor
from serve.gateway.http.body import BodyReader, kind_of
from serve.gateway.http.openapi import INFERENCE_ERRORS, described
from serve.gateway.http.schemas import PredictAnswer, PredictRequest

PATH = "/v1/predict"


def predict_router(predictor: Predictor, bodies: BodyReader, max_inputs: int) -> APIRouter:
    """Return the route of predictions. One request may have at most `max_inputs` inputs."""
    router = APIRouter()
    form = Form(PATH, lambda target, prediction: answer(target.model, prediction))

    @router.post(
        PATH,
        **described(
            "Labels or values", INFERENCE_ERRORS, body=PredictRequest, answer=PredictAnswer
        ),
    )
    async def predict(request: Request) -> Response:
        body = await bodies.model(request, PredictRequest)
        inputs = read_inputs(body.input, max_inputs)
        return await predictor.answer(
            request, form, body.model, inputs, body.fusion, return_members=body.return_members
        )

    return router


def read_inputs(value: object, most: int) -> tuple[Text, ...]:
    """Return the inputs in the field `input`: a text, an object, or a list of either.

    Raises RefusedError (400) if there are more than `most`, or one is malformed."""
    if not isinstance(value, list):
        return (_read_input(value, "input"),)
    if not value:
        raise RefusedError(400, "input: the list is empty; give at least one text.", param="input")
    if len(value) > most:
        raise RefusedError(
            400,
            f"input: {len(value):,} inputs are more than the {most:,} that one request may have; "
            "send several requests.",
            param="input",
        )
    return tuple(_read_input(each, f"input[{index}]") for index, each in enumerate(value))


def _read_input(value: object, where: str) -> Text:
    if isinstance(value, str):
        return Text(_text(value, where))
    if not isinstance(value, dict):
        raise RefusedError(
            400,
            f"{where}: must be a text or an object with the field 'text' or 'image', not {kind_of(value)}.",
            param="input",
        )
    unknown = value.keys() - {"text", "text_pair", "image"}
    if unknown:
        raise RefusedError(
            400,
            f"{where}: the field {min(unknown)!r} is not known; known are 'text', 'text_pair' and 'image'.",
            param="input",
        )
    if (image := value.get("image")) is not None:
        if "text_pair" in value:
            raise RefusedError(
                400,
                f"{where}: an image stands alone or with one text; leave out 'text_pair'.",
                param="input",
            )
        text = _text(value["text"], f"{where}.text") if "text" in value else ""
        return Text(text, image=_text(image, f"{where}.image"))
    pair = value.get("text_pair")
    return Text(
        _text(value.get("text"), f"{where}.text"),
        None if pair is None else _text(pair, f"{where}.text_pair"),
    )


def _text(value: object, where: str) -> str:
    if not isinstance(value, str):
        raise RefusedError(400, f"{where}: must be a text, not {kind_of(value)}.", param="input")
    if not value:
        raise RefusedError(400, f"{where}: the text is empty.", param="input")
    return value


def answer(model: str, prediction: Prediction) -> dict[str, Any]:
    """Return the document of the answer, as dicts, lists, strings and numbers."""
    labels = prediction.labels
    data: list[dict[str, Any]] = [
        {"index": index, **said, **apart}
        for index, (said, apart) in enumerate(
            zip(_said(labels, prediction.answers), _apart(prediction.answers), strict=True)
        )
    ]
    if prediction.asked is not None:
        for row, asked in zip(data, prediction.asked.sum(axis=0).tolist(), strict=True):
            row["members_asked"] = asked
    if prediction.abstained is not None:
        for row, abstained in zip(data, prediction.abstained.tolist(), strict=True):
            row["abstained"] = abstained
    if prediction.member_answers is not None:
        for row in data:
            row["members"] = []
        for place, (member, answers) in enumerate(
            zip(prediction.members, prediction.member_answers, strict=True)
        ):
            name = {"name": member.name, "adapters": [ref.model_dump() for ref in member.adapters]}
            asked_rows = (
                data if prediction.asked is None else compress(data, prediction.asked[place])
            )
            for row, said in zip(asked_rows, _said(labels, answers), strict=True):
                row["members"].append({**name, **said})
    document = {
        "object": "list",
        "model": model,
        "data": data,
        "usage": {
            "prompt_tokens": prediction.prompt_tokens,
            "member_tokens": prediction.member_tokens,
            "computed_tokens": prediction.computed_tokens,
        },
    }
    if prediction.absent:
        document["absent_members"] = list(prediction.absent)
    return document


def _said(labels: Sequence[str], answers: Answers) -> list[dict[str, Any]]:
    """Return for each input the fields that fused answers and members' answers have in common."""
    match answers:
        case Fused():
            winners, rows = answers.winners.tolist(), answers.probabilities.tolist()
            return [
                {"label": labels[winner], "probabilities": dict(zip(labels, row, strict=True))}
                for winner, row in zip(winners, rows, strict=True)
            ]
        case FusedSets():
            sets, rows = answers.chosen.tolist(), answers.probabilities.tolist()
            return [
                {
                    "labels": list(compress(labels, chosen)),
                    "probabilities": dict(zip(labels, row, strict=True)),
                }
                for chosen, row in zip(sets, rows, strict=True)
            ]
        case FusedValues():
            return [{"value": value} for value in answers.values.tolist()]


def _apart(answers: Answers) -> list[dict[str, float]]:
    """Return for each input the fields of the fused answer alone: its uncertainty and the members' disagreement."""
    if isinstance(answers, FusedValues):
        return [{"std": std} for std in answers.std.tolist()]
    return [
        {"entropy": entropy, "disagreement": disagreement}
        for entropy, disagreement in zip(
            answers.entropy.tolist(), answers.disagreement.tolist(), strict=True
        )
    ]

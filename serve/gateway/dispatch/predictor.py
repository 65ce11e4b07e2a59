"""Gets predictions for the routes that ask for them. Each route has its own body and its own document."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import compress
from typing import Any

from fastapi import Request
from pydantic_core import to_json
from starlette.responses import Response

from serve.agents.routes import Target
from serve.engine.interface import PredictCall, Prediction, Text
from serve.errors import Refusal
from serve.fusion.fused import Fused, FusedSets, FusedValues
from serve.gateway.dispatch.dispatch import Dispatcher
from serve.gateway.dispatch.mirror import Mirror, asked_too
from serve.gateway.dispatch.outcome import Answer
from serve.gateway.drift import DriftWatch
from serve.gateway.http.observe import exchange_of
from serve.gateway.http.schemas import PredictFusion
from serve.gateway.links import EngineLink


@dataclass(frozen=True)
class Said:
    """An engine's prediction, and the document that the client gets for it."""

    prediction: Prediction
    document: bytes


@dataclass(frozen=True)
class Form:
    """How a route asks and answers."""

    path: str
    write: Callable[[Target, Prediction], dict[str, Any]]
    """Returns the document of an answer, as dicts, lists, strings and numbers."""
    refuse: Callable[[Target], Refusal | None] = lambda target: None
    """Returns why the route cannot ask a target; None if it can."""


class Predictor:
    """Asks for predictions, watches the drift of the answers, and has them compared while a version is tried out."""

    def __init__(
        self, engines: EngineLink, dispatcher: Dispatcher, mirror: Mirror, drift: DriftWatch
    ) -> None:
        self._engines = engines
        self._dispatcher = dispatcher
        self._mirror = mirror
        self._drift = drift

    async def answer(
        self,
        request: Request,
        form: Form,
        model: str,
        inputs: tuple[Text, ...],
        fusion: PredictFusion | None = None,
        *,
        return_members: bool = False,
        user: str | None = None,
    ) -> Response:
        """Return the answer of `model` to the inputs, written as the form says. `fusion`: instead of the ensemble's
        own. `user`: see `Dispatcher.ask`, which also says what is raised."""
        exchange = exchange_of(request)
        asked = fusion or PredictFusion()

        async def ask(target: Target) -> Answer[Said] | Refusal:
            if (refusal := form.refuse(target)) is not None:
                return refusal
            call = PredictCall(
                version=target.key,
                inputs=inputs,
                request_id=exchange.request_id,
                member=target.member,
                method=asked.method,
                weights=asked.weights,
                top_k=asked.top_k,
                early_exit=asked.early_exit,
                abstain=asked.abstain,
                return_members=return_members,
                trace_headers=exchange.trace_headers,
                pool=target.pool,
                seconds_left=exchange.time_for(target),
            )
            prediction = await self._engines.predict(call)
            if isinstance(prediction, Refusal):
                return prediction
            # Write the document here, so that a prediction that cannot be written counts as the version's failure.
            return Answer(Said(prediction, to_json(form.write(target, prediction))))

        target, given = await self._dispatcher.ask(request, model, ask, len(inputs), user)
        if fusion is None:
            exchange.afterwards(lambda: self._drift.seen(target, given.said.prediction))
        other = asked_too(target)
        if other is not None:
            prediction = given.said.prediction

            async def compare(again: Answer[Said]) -> float | None:
                return agreement(prediction, again.said.prediction)

            self._mirror.after(exchange, other, form.path, ask, compare)
        return Response(given.said.document, media_type="application/json")


def agreement(one: Prediction, other: Prediction) -> float | None:
    """Return the share of inputs for which both predictions have the same label or labels.

    Returns None for values: floating-point numbers hardly ever are equal."""
    if isinstance(one.answers, FusedValues):
        return None
    pairs = zip(_named(one), _named(other), strict=True)
    same = [mine == theirs for mine, theirs in pairs]
    return sum(same) / len(same)


def _named(prediction: Prediction) -> list[set[str]]:
    """Return the answered labels of each input; of values none."""
    labels, answers = prediction.labels, prediction.answers
    match answers:
        case Fused():
            return [{labels[winner]} for winner in answers.winners.tolist()]
        case FusedSets():
            return [set(compress(labels, chosen)) for chosen in answers.chosen.tolist()]
        case FusedValues():
            return []

"""Engines that answer without a model, in the form that real ones do: predictions of every task, and streams of tokens
with what each member thought of them."""

import asyncio
import json
import zlib
from collections.abc import AsyncGenerator
from itertools import count

import numpy as np

from serve import metrics
from serve.engine.interface import EmbedCall, Embeddings, GenerateCall, PredictCall, Prediction
from serve.errors import Refusal
from serve.fusion.fused import Answers, Fused, FusedSets, FusedValues
from serve.fusion.members import Floats
from serve.manifest import ANSWER_METHODS, Ensemble
from tests.serve.world import World

WRITTEN = ["Your", " parcel", " left", " our", " store", " this", " morning", "."]
DISAGREEMENT = [0.0, 0.03, 0.31, 0.12, 0.5, 0.0, 0.27, 0.0]
ENDLESS = "endless"
"""A prompt with this word is answered until the client leaves."""
BROKEN = "broken"
"""A prompt with this word is answered by a stream that ends without its end."""


class ScriptedEngines:
    """Answers for the gateway of a `World`. What is answered follows from the input's text alone."""

    def __init__(self, world: World, pause: float = 0.0) -> None:
        self._world = world
        self.pause = pause
        """Seconds between two tokens."""
        self.left = 0
        """How many streams a client has left before their end."""

    def _ensemble(self, version: str) -> Ensemble:
        return self._world.gateways[0].routes.named(version).ensemble

    async def predict(self, call: PredictCall) -> Prediction | Refusal:
        ensemble = self._ensemble(call.version)
        members = [each for each in ensemble.members if call.member in (None, each.name)]
        columns = len(ensemble.labels or "1")
        numbers = np.array(
            [
                [_numbers(text.text, member.name, columns) for text in call.inputs]
                for member in members
            ]
        )
        weights = np.full(len(members), 1 / len(members))
        fused, own = _answers(ensemble, numbers, weights)
        for member, said in zip(members, own, strict=True):
            if isinstance(fused, Fused) and isinstance(said, Fused):
                agreeing = int((said.winners == fused.winners).sum())
                metrics.member_agreed(
                    ensemble.name, member.name, agreeing, len(call.inputs) - agreeing
                )
        if not isinstance(fused, FusedValues):
            metrics.disagreement_seen(ensemble.name, fused.disagreement.tolist())
        return Prediction(
            version=call.version,
            labels=tuple(ensemble.labels or ()),
            answers=fused,
            members=tuple(members),
            member_answers=tuple(own) if call.return_members else None,
            prompt_tokens=5 * len(call.inputs),
            member_tokens=5 * len(call.inputs) * len(members),
        )

    async def embed(self, call: EmbedCall) -> Embeddings | Refusal:
        raise NotImplementedError

    async def generate(self, call: GenerateCall) -> AsyncGenerator[bytes | Refusal, None]:
        asked = json.dumps(call.body)
        if call.method in ANSWER_METHODS:
            yield self._whole(call)
            yield b"data: [DONE]\n\n"
            return
        ended = False
        try:
            for place in count() if ENDLESS in asked else range(len(WRITTEN)):
                yield self._event(call, place % len(WRITTEN))
                await asyncio.sleep(self.pause or 0.01)
            if BROKEN not in asked:
                usage = {"prompt_tokens": 4, "completion_tokens": len(WRITTEN), "member_tokens": 36}
                yield _data({"model": call.model, "choices": [], "usage": usage})
                yield b"data: [DONE]\n\n"
            ended = True
        finally:
            self.left += not ended

    def _whole(self, call: GenerateCall) -> bytes:
        """The answer that most members gave, with those of all: the last one gives another."""
        names = [member.name for member in self._ensemble(call.version).members]
        text = "".join(WRITTEN)
        members = [{"name": name, "text": text, "agrees": True} for name in names[:-1]]
        members.append({"name": names[-1], "text": "No.", "agrees": False})
        choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": "stop"}
        choice |= {"agreement": 1 - 1 / len(names), "members": members}
        return _data({"model": call.model, "choices": [choice]})

    def _event(self, call: GenerateCall, place: int) -> bytes:
        word, nats = WRITTEN[place], DISAGREEMENT[place]
        chat = call.route == "chat"
        logprobs: dict[str, object] = {"tokens": [word], "token_logprobs": [-0.3 - nats]}
        if chat:
            logprobs = {"content": [{"token": word, "logprob": -0.3 - nats}]}
        choice: dict[str, object] = {"index": 0, "logprobs": logprobs, "finish_reason": None}
        choice |= {"delta": {"content": word}} if chat else {"text": word}
        if place == len(WRITTEN) - 1:
            choice["finish_reason"] = "stop"
        if not (chat and place == 0):
            return _data({"model": call.model, "choices": [choice | self._report(call, [place])]})
        # The first event of a chat names the role alone, and has the report of the first token.
        role = {"index": 0, "delta": {"role": "assistant", "content": ""}, "logprobs": None}
        events = (role | self._report(call, [0]), choice | self._report(call, []))
        return b"".join(_data({"model": call.model, "choices": [each]}) for each in events)

    def _report(self, call: GenerateCall, places: list[int]) -> dict[str, object]:
        """What the members thought of the tokens at these places."""
        if not call.return_members:
            return {}
        nats = [DISAGREEMENT[place] for place in places]
        members = [
            {"name": member.name, "token_logprobs": [-0.2 - each * (rank + 1) for each in nats]}
            for rank, member in enumerate(self._ensemble(call.version).members)
        ]
        return {"disagreement": nats, "members": members}


def _data(document: object) -> bytes:
    return f"data: {json.dumps(document)}\n\n".encode()


def _numbers(text: str, member: str, columns: int) -> Floats:
    """Numbers of one member: the same text tends to the same column, and each member has a mind of its own."""
    shared = np.random.default_rng(zlib.crc32(text.encode())).normal(size=columns) * 2.2
    own = np.random.default_rng(zlib.crc32(f"{member} {text}".encode())).normal(size=columns)
    return np.asarray(shared + own)


def _answers(ensemble: Ensemble, numbers: Floats, weights: Floats) -> tuple[Answers, list[Answers]]:
    if ensemble.task == "regression":
        values = numbers[:, :, 0]
        said: Answers = FusedValues(values.mean(0), values.std(0))
        return said, [FusedValues(each, np.zeros(len(each))) for each in values]
    if ensemble.task == "multilabel":
        sets = 1 / (1 + np.exp(-numbers))
        return _sets(sets.mean(0)), [_sets(each) for each in sets]
    powers = np.exp(numbers)
    members = powers / powers.sum(axis=2, keepdims=True)
    fused = np.tensordot(weights, members, axes=1)
    apart = _entropy(fused) - np.tensordot(weights, _entropy(members), axes=1)
    return _label(fused, apart), [_label(each, np.zeros(len(each))) for each in members]


def _label(probabilities: Floats, apart: Floats) -> Fused:
    return Fused(probabilities, _entropy(probabilities), apart, probabilities.argmax(1))


def _sets(probabilities: Floats) -> FusedSets:
    zeros = np.zeros(len(probabilities))
    return FusedSets(probabilities, zeros + 0.9, zeros + 0.1, probabilities >= 0.5)


def _entropy(probabilities: Floats) -> Floats:
    return np.asarray(-(probabilities * np.log(probabilities)).sum(axis=-1))

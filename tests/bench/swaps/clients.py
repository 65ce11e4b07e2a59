"""Clients that send one request after another, and compare every answer with PEFT's for the contents it names."""

import json
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import httpx
from httpx_sse import EventSource

from tests.service.load import References, wrong_members

TOKENS = 8
"""Of each chat answer."""

PREDICT, CHAT = "predict", "chat"
MODEL = "x-choir-model"
"""The header that names the version, of errors too."""


@dataclass(frozen=True)
class Answered:
    """One request, as its client saw it. Times are seconds of the run."""

    kind: str
    began: float
    seconds: float
    """Until the whole answer."""
    model: str = ""
    """The resolved name."""
    failure: str | None = None
    mixed: str | None = None
    """How the answer differs from that of the version it names."""
    retried: bool = False
    """Whether a stream broke off and was sent again, as a client library may do."""


@dataclass(frozen=True)
class Expected:
    """What PEFT answers, by content."""

    texts: Sequence[str]
    """Drawn from by chance."""
    labels: Sequence[str]
    predictions: References
    chats: Mapping[str, Mapping[str, Sequence[int]]]
    """Digest of an adapter -> text -> greedy tokens."""


@dataclass
class Clients:
    """Threads that ask `intents` for predictions and `replies/a` for streamed chats."""

    url: str
    expected: Expected
    predicting: int
    chatting: int
    digests_of: Callable[[str], Sequence[str]]
    """`name@version` -> the digests of its members, in order."""
    clock: Callable[[], float]
    answers: list[Answered] = field(default_factory=list)

    def __enter__(self) -> "Clients":
        self._stop = threading.Event()
        asks = [self._predict] * self.predicting + [self._chat] * self.chatting
        self._threads = [
            threading.Thread(target=self._client, args=(ask, number))
            for number, ask in enumerate(asks)
        ]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _client(self, ask: Callable[[httpx.Client, str], Answered], number: int) -> None:
        turns = random.Random(number)
        with httpx.Client(base_url=self.url, timeout=60) as http:
            while not self._stop.is_set():
                self.answers.append(ask(http, turns.choice(self.expected.texts)))

    def _predict(self, http: httpx.Client, text: str) -> Answered:
        began = self.clock()
        body = {"model": "intents", "input": text, "return_members": True}
        try:
            response = http.post("/v1/predict", json=body)
        except httpx.HTTPError as error:
            return Answered(PREDICT, began, self.clock() - began, failure=repr(error))
        seconds = self.clock() - began
        if response.status_code != 200:
            failure = f"{response.status_code}: {response.text}"
            return Answered(PREDICT, began, seconds, response.headers.get(MODEL, ""), failure)
        answer = response.json()
        (row,) = answer["data"]
        named = [member["adapters"][0]["digest"] for member in row["members"]]
        mixed = wrong_members(row, text, self.expected.labels, self.expected.predictions)
        if named != list(self.digests_of(answer["model"])):
            mixed = f"{answer['model']} was answered by {named}"
        return Answered(PREDICT, began, seconds, answer["model"], mixed=mixed)

    def _chat(self, http: httpx.Client, text: str) -> Answered:
        began = self.clock()
        retried = False
        while True:
            try:
                models, tokens = self._stream(http, text)
                break
            except (httpx.HTTPError, BrokenStream) as error:
                refused = isinstance(error, BrokenStream) and error.status != 200
                if retried or refused:
                    return Answered(CHAT, began, self.clock() - began, failure=repr(error))
                retried = True
        seconds = self.clock() - began
        model = " and ".join(sorted(models))
        digest = self.digests_of(model.partition("/")[0])[0] if len(models) == 1 else ""
        wanted = self.expected.chats.get(digest, {}).get(text, ())
        mixed = None if tokens == list(wanted) else f"{model} wrote {tokens}, not {list(wanted)}"
        return Answered(CHAT, began, seconds, model, mixed=mixed, retried=retried)

    def _stream(self, http: httpx.Client, text: str) -> tuple[set[str], list[int]]:
        """The models that the events name, and all tokens. Raises BrokenStream."""
        body = {
            "model": "replies/a",
            "messages": [{"role": "user", "content": text}],
            "stream": True,
            "max_tokens": TOKENS,
            "temperature": 0,
            "ignore_eos": True,
            "return_token_ids": True,
        }
        models: set[str] = set()
        tokens: list[int] = []
        with http.stream("POST", "/v1/chat/completions", json=body) as response:
            if response.status_code != 200:
                response.read()
                raise BrokenStream(response.status_code, response.text)
            for event in _events(response):
                if "error" in event:
                    raise BrokenStream(200, event["error"]["message"])
                models.add(event["model"])
                for choice in event["choices"]:
                    tokens += choice.get("token_ids") or []
        return models, tokens


class BrokenStream(Exception):
    """A stream that was refused with its status, or broke off after a 200."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(f"{status}: {reason}")
        self.status = status


def _events(response: httpx.Response) -> Iterator[dict]:  # type: ignore[type-arg]
    for event in EventSource(response).iter_sse():
        if event.data == "[DONE]":
            return
        if event.data:
            yield json.loads(event.data)
    raise BrokenStream(200, "the stream ended before its last event")


class Clock:
    """Seconds since the run began."""

    def __init__(self) -> None:
        self._zero = time.monotonic()

    def __call__(self) -> float:
        return time.monotonic() - self._zero

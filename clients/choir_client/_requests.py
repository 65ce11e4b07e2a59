"""The API as data: one function for each route returns the `Call` that both clients send."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar
from urllib.parse import quote

import httpx
from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from choir_client.exceptions import ChoirError, InvalidAnswer
from choir_client.models import (
    AuditEntry,
    ChatCompletion,
    Completion,
    EnsemblePage,
    EnsembleStatus,
    Health,
    Model,
    Pruned,
    Rollout,
)
from choir_client.predictions import AnyPrediction, Prediction

T = TypeVar("T")
Input = str | Mapping[str, Any]
"""A text, or an object: `{"text": ..., "text_pair": ...}`, or `{"image": ...}` as `choir_client.image` makes it, with a
`"text"` beside it for bases that write about images."""
_PREDICTION: TypeAdapter[Prediction] = TypeAdapter(AnyPrediction)


@dataclass(frozen=True)
class Call(Generic[T]):
    """One HTTP request, and the function that reads its answer."""

    method: str
    path: str
    parse: Callable[[httpx.Response], T]
    json: Mapping[str, Any] | None = None
    params: Mapping[str, str] | None = None
    retry: bool = True
    """Whether the request may safely be sent twice."""
    changes: bool = False
    """Whether the request changes a version. That may take long, and goes on if the client gives up."""
    answers: frozenset[int] = frozenset()
    """Error statuses that are answers here: a server that is not ready answers `/ready` with 503."""

    @property
    def body(self) -> dict[str, Any]:
        """The body as httpx takes it. Raises ChoirError if it holds what JSON has not, such as an infinite number."""
        if self.json is None:
            return {}
        try:
            text = json.dumps(self.json, ensure_ascii=False, allow_nan=False)
            content = text.encode()
        except ValueError as error:
            raise ChoirError(f"the request cannot be written as JSON: {error}") from None
        return {"content": content, "headers": {"content-type": "application/json"}}


def predict(
    model: str,
    inputs: Input | Sequence[Input],
    fusion: Mapping[str, Any] | None,
    return_members: bool,
) -> Call[Prediction]:
    body: dict[str, Any] = {"model": model, "input": inputs}
    if fusion is not None:
        body["fusion"] = fusion
    if return_members:
        body["return_members"] = True

    def parse(response: httpx.Response) -> Prediction:
        return read(response.content, _PREDICTION, str(response.url))

    return Call("POST", "/v1/predict", parse, json=body)


def completion(model: str, prompt: Any, options: Mapping[str, Any]) -> Call[Completion]:
    body = {"model": model, "prompt": prompt, **options}
    return Call("POST", "/v1/completions", _model(Completion), json=body)


def chat(
    model: str, messages: Sequence[Mapping[str, Any]], options: Mapping[str, Any]
) -> Call[ChatCompletion]:
    body = {"model": model, "messages": list(messages), **options}
    return Call("POST", "/v1/chat/completions", _model(ChatCompletion), json=body)


def models() -> Call[list[Model]]:
    return Call("GET", "/v1/models", _listing(Model))


def ensembles(limit: int, after: str | None) -> Call[EnsemblePage]:
    asked = {"limit": str(limit)} | ({} if after is None else {"after": after})
    return Call("GET", "/v1/ensembles", _model(EnsemblePage), params=asked)


def ensemble(name: str) -> Call[EnsembleStatus]:
    return Call("GET", f"/v1/ensembles/{_segment(name)}", _model(EnsembleStatus))


def rollouts() -> Call[list[Rollout]]:
    return Call("GET", "/v1/rollouts", _listing(Rollout))


def audit() -> Call[list[AuditEntry]]:
    return Call("GET", "/v1/rollouts", _listing(AuditEntry, "audit"))


def rollout(rollout_id: str) -> Call[Rollout]:
    return Call("GET", f"/v1/rollouts/{_segment(rollout_id)}", _model(Rollout))


def swap(
    name: str,
    *,
    members: Mapping[str, str | Sequence[str]] | None,
    manifest: Mapping[str, Any] | None,
    version: int | None,
    expected_version: int | None,
    strategy: Mapping[str, Any] | None,
    allow_stale_fusion: bool,
    wait: bool,
) -> Call[Rollout]:
    given = {"members": members, "manifest": manifest, "version": version}
    if sum(value is not None for value in given.values()) != 1:
        found = (
            ", ".join(key for key, value in given.items() if value is not None) or "none of them"
        )
        raise ValueError(
            f"a swap takes exactly one of members, manifest and version, but got {found}"
        )
    body = {
        **given,
        "expected_version": expected_version,
        "strategy": strategy,
        "allow_stale_fusion": allow_stale_fusion or None,
    }
    return _rollout_call(f"/v1/ensembles/{_segment(name)}/swap", body, wait)


def rollback(name: str, *, to: int | None, wait: bool) -> Call[Rollout]:
    return _rollout_call(f"/v1/ensembles/{_segment(name)}/rollback", {"to": to}, wait)


def promote(rollout_id: str, *, wait: bool) -> Call[Rollout]:
    return _rollout_call(f"/v1/rollouts/{_segment(rollout_id)}/promote", {}, wait)


def abort(rollout_id: str) -> Call[Rollout]:
    return _rollout_call(f"/v1/rollouts/{_segment(rollout_id)}/abort", {}, wait=False)


def prune(keep_versions: int | None, keep_days: float | None, dry_run: bool) -> Call[Pruned]:
    given = {"keep_versions": keep_versions, "keep_days": keep_days}
    body = {key: value for key, value in given.items() if value is not None}
    return Call(
        "POST",
        "/v1/prune",
        _model(Pruned),
        json={**body, "dry_run": dry_run},
        # A second attempt would answer that there is nothing to remove.
        retry=dry_run,
        changes=True,
    )


def metrics() -> Call[str]:
    return Call("GET", "/metrics", lambda response: response.text)


_NOT_READY = frozenset({500, 502, 503, 504})
"""A server that is not ready, and proxies before one that is away."""


def probe(path: str) -> Call[Health]:
    return Call("GET", path, _health, retry=False, answers=_NOT_READY)


def _health(response: httpx.Response) -> Health:
    try:
        body = response.json()
    except ValueError:
        body = None
    fields = body if isinstance(body, dict) else {}
    return Health.model_validate({**fields, "ok": response.status_code == 200})


def _rollout_call(path: str, body: Mapping[str, Any], wait: bool) -> Call[Rollout]:
    given = {key: value for key, value in body.items() if value is not None}
    return Call(
        "POST",
        path,
        _model(Rollout),
        json=given,
        params={"wait": "true"} if wait else None,
        # A second attempt would be refused because of the first one's rollout, or start another rollout.
        retry=False,
        changes=True,
    )


def _segment(name: str) -> str:
    return quote(name, safe="")


M = TypeVar("M", bound=BaseModel)


def _model(model: type[M]) -> Callable[[httpx.Response], M]:
    return lambda response: read(response.content, TypeAdapter(model), str(response.url))


def _listing(model: type[M], field: str = "data") -> Callable[[httpx.Response], list[M]]:
    """Return a reader of the list in `field`: `{"object": "list", "data": [...]}`, or `audit` for the audit."""

    class Listing(BaseModel):
        found: list[model] = Field(alias=field)  # type: ignore[valid-type]

    def parse(response: httpx.Response) -> list[M]:
        return read(response.content, TypeAdapter(Listing), str(response.url)).found

    return parse


def read(content: bytes | str, adapter: TypeAdapter[T], source: str) -> T:
    """Return `content` as `adapter`'s type. Raises InvalidAnswer, which names `source`, if it does not fit."""
    try:
        return adapter.validate_json(content)
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(str(part) for part in problem["loc"]) or "the body"
        raise InvalidAnswer(
            f"{source} gave an answer that is not part of Choir's API ({where}: {problem['msg']})"
        ) from None

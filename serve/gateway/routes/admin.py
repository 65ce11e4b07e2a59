"""The routes of the control plane: ensembles, swaps, rollbacks and rollouts."""

from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Depends, Query, Request
from pydantic_core import to_json
from starlette.responses import Response

from serve.errors import Refusal, RefusedError
from serve.gateway.http.auth import Guard, actor
from serve.gateway.http.body import BodyReader
from serve.gateway.http.openapi import ADMIN_ERRORS, LIST_ERRORS, READ_ERRORS, described
from serve.gateway.http.schemas import RollbackRequest
from serve.gateway.links import ControlLink
from serve.protocol.pruning import PruneRequest, PruneView
from serve.protocol.requests import SwapRequest
from serve.protocol.views import EnsembleView, RolloutView

T = TypeVar("T")
Limit = Annotated[int | None, Query(ge=1, le=1000, description="How many to list; all without it.")]
After = Annotated[
    str | None, Query(max_length=63, description="List those whose names sort behind this one.")
]


def reading_router(control: ControlLink) -> APIRouter:
    """Return the routes that read: ensembles, rollouts and the audit."""
    router = APIRouter()

    @router.get("/v1/ensembles", **described("Ensembles by name", (400, *LIST_ERRORS)))
    async def ensembles(limit: Limit = None, after: After = None) -> Response:
        # One more than a page shows that there is another page.
        found = await control.ensembles(None if limit is None else limit + 1, after)
        page = found[:limit]
        ends = {"first_id": page[0].name, "last_id": page[-1].name} if page else {}
        more = len(found) > len(page)
        return _document({"object": "list", "data": page, **ends, "has_more": more})

    @router.get(
        "/v1/ensembles/{name}", **described("One ensemble", READ_ERRORS, answer=EnsembleView)
    )
    async def ensemble(name: str) -> Response:
        return _document(await control.ensemble(name))

    @router.get("/v1/rollouts", **described("The latest rollouts, and the audit", LIST_ERRORS))
    async def rollouts() -> Response:
        found = granted(await control.rollouts())
        audit = granted(await control.audit())
        return _document({"object": "list", "data": found, "audit": audit})

    @router.get(
        "/v1/rollouts/{rollout_id}", **described("One rollout", READ_ERRORS, answer=RolloutView)
    )
    async def rollout(rollout_id: str) -> Response:
        return _document(await control.rollout(rollout_id))

    return router


def admin_router(control: ControlLink, guard: Guard, bodies: BodyReader) -> APIRouter:
    """Return the routes that change versions. All need `guard.admin`."""
    router = APIRouter(dependencies=[Depends(guard.admin)])

    @router.post(
        "/v1/ensembles/{name}/swap",
        **described("Start a swap", ADMIN_ERRORS, body=SwapRequest, answer=RolloutView),
    )
    async def swap(request: Request, name: str, wait: bool = False) -> Response:
        body = await bodies.model(request, SwapRequest)
        return _begun(await control.swap(name, body, actor(request), wait), wait)

    @router.post(
        "/v1/ensembles/{name}/rollback",
        **described("Go back a version", ADMIN_ERRORS, body=RollbackRequest, answer=RolloutView),
    )
    async def rollback(request: Request, name: str, wait: bool = False) -> Response:
        body = await bodies.model(request, RollbackRequest)
        return _begun(await control.rollback(name, body.to, actor(request), wait), wait)

    @router.post(
        "/v1/rollouts/{rollout_id}/promote",
        **described(
            "Make the candidate of a shadow or canary active", ADMIN_ERRORS, answer=RolloutView
        ),
    )
    async def promote(request: Request, rollout_id: str, wait: bool = False) -> Response:
        await bodies.nothing(request)
        return _begun(await control.promote(rollout_id, actor(request), wait), wait)

    @router.post(
        "/v1/rollouts/{rollout_id}/abort",
        **described("End a rollout before its commit", ADMIN_ERRORS, answer=RolloutView),
    )
    async def abort(request: Request, rollout_id: str) -> Response:
        await bodies.nothing(request)
        return _document(await control.abort(rollout_id, actor(request)))

    @router.post(
        "/v1/prune",
        **described(
            "Remove versions and files that nobody can reach any more",
            ADMIN_ERRORS,
            body=PruneRequest,
            answer=PruneView,
        ),
    )
    async def prune(request: Request) -> Response:
        body = await bodies.model(request, PruneRequest)
        return _document(await control.prune(body, actor(request)))

    return router


def _begun(answer: RolloutView | Refusal, wait: bool) -> Response:
    """Return 200 if the caller waited for the commit, else 202."""
    return _document(answer, 200 if wait else 202)


def granted(answer: T | Refusal) -> T:
    """Return the controller's answer. Raises RefusedError if it is a refusal."""
    if isinstance(answer, Refusal):
        raise RefusedError.of(answer)
    return answer


def _document(answer: Any, status: int = 200) -> Response:
    return Response(to_json(granted(answer)), status, media_type="application/json")

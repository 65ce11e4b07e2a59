"""`GET /report/{ensemble}`: the page of the report in the bundle that the ensemble came from."""

from fastapi import APIRouter
from starlette.responses import HTMLResponse, Response

from serve.errors import Refusal, RefusedError
from serve.gateway.http.openapi import READ_ERRORS, described
from serve.gateway.links import ControlLink

_HEADERS = {
    # The page is a file of a bundle: whatever it holds, it runs nothing, asks no host and is framed by nobody.
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; sandbox",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}


def report_router(control: ControlLink) -> APIRouter:
    """Return the route of the report's page."""
    router = APIRouter()

    @router.get(
        "/report/{name}",
        response_class=HTMLResponse,
        **described("The page of the report of an ensemble's bundle", READ_ERRORS),
    )
    async def report(name: str) -> Response:
        page = await control.report(name)
        if isinstance(page, Refusal):
            raise RefusedError.of(page)
        return HTMLResponse(page, headers=_HEADERS)

    return router

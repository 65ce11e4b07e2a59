"""`GET /`: a plain page that lists the active ensembles, says where their adapters came from, and links to the other
routes."""

from collections.abc import Sequence
from pathlib import Path

from fastapi import APIRouter
from jinja2 import Environment, FileSystemLoader
from starlette.responses import HTMLResponse, Response

from serve.agents.gateway_agent import GatewayAgent
from serve.gateway.links import ControlLink, Unavailable
from serve.protocol.views import EnsembleView

_HEADERS = {
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'",
    "x-content-type-options": "nosniff",
}


def home_router(agent: GatewayAgent, control: ControlLink | None) -> APIRouter:
    """Return the route of the page, which lists the ensembles that `agent` routes to.

    It says where adapters came from if `control` is given. It must not be where reading needs a token, since the page
    needs none."""
    router = APIRouter()
    templates = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True)
    page = templates.get_template("home.html")

    @router.get("/", include_in_schema=False)
    async def home() -> Response:
        models = agent.routes.models().items()
        targets = [target for name, target in models if name == target.ensemble.name]
        ensembles = await _ensembles(control)
        text = page.render(ready=agent.ready, targets=targets, ensembles=ensembles)
        return HTMLResponse(text, headers=_HEADERS)

    return router


async def _ensembles(control: ControlLink | None) -> Sequence[EnsembleView]:
    """Return all ensembles; none while the controller cannot be reached."""
    if control is None:
        return []
    try:
        return await control.ensembles()
    except Unavailable:
        return []

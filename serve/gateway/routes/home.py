"""`GET /`: a plain page that lists the active ensembles and links to the other routes."""

from pathlib import Path

from fastapi import APIRouter
from jinja2 import Environment, FileSystemLoader
from starlette.responses import HTMLResponse, Response

from serve.agents.gateway_agent import GatewayAgent

_HEADERS = {
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'",
    "x-content-type-options": "nosniff",
}


def home_router(agent: GatewayAgent) -> APIRouter:
    """Return the route of the page, which lists the ensembles that `agent` routes to."""
    router = APIRouter()
    templates = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True)
    page = templates.get_template("home.html")

    @router.get("/", include_in_schema=False)
    async def home() -> Response:
        models = agent.routes.models().items()
        targets = [target for name, target in models if name == target.ensemble.name]
        return HTMLResponse(page.render(ready=agent.ready, targets=targets), headers=_HEADERS)

    return router

"""`GET /`: a plain page that says what runs and where to look."""

from html import escape

from fastapi import APIRouter
from starlette.responses import HTMLResponse, Response

from serve.agents.gateway_agent import GatewayAgent
from serve.agents.routes import Target

_HEADERS = {
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'",
    "x-content-type-options": "nosniff",
}
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Choir</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 46rem; margin: 3rem auto; padding: 0 1rem }}
table {{ border-collapse: collapse; width: 100% }}
th, td {{ text-align: left; padding: .4rem .8rem .4rem 0; border-bottom: 1px solid #8884 }}
</style>
</head>
<body>
<h1>Choir</h1>
<p>{state}</p>
<table>
<thead><tr><th>Ensemble</th><th>Active</th><th>Task</th><th>Fusion</th><th>Members</th></tr></thead>
<tbody>
{rows}
</tbody>
</table>
<p><a href="/v1/models">Models</a> · <a href="/v1/ensembles">Ensembles</a> ·
<a href="/v1/rollouts">Rollouts</a> · <a href="/metrics">Metrics</a> ·
<a href="/openapi.json">OpenAPI</a></p>
</body>
</html>
"""


def home_router(agent: GatewayAgent) -> APIRouter:
    router = APIRouter()

    @router.get("/", include_in_schema=False)
    async def home() -> Response:
        active = [
            target for name, target in agent.routes.models().items() if name == target.ensemble.name
        ]
        state = "Ready." if agent.ready else "Starting: no engine has loaded a version yet."
        page = _PAGE.format(state=state, rows="\n".join(map(_row, active)))
        return HTMLResponse(page, headers=_HEADERS)

    return router


def _row(target: Target) -> str:
    ensemble = target.ensemble
    members = ", ".join(member.name for member in ensemble.members)
    cells = (ensemble.name, target.key, ensemble.task, ensemble.fusion.method, members)
    return "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>"

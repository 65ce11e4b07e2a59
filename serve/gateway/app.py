"""The gateway's HTTP application: every route, and what stands around them."""

from fastapi import Depends, FastAPI

from serve.config import Settings
from serve.gateway.admin import admin_router, reading_router
from serve.gateway.auth import Guard
from serve.gateway.body import BodyReader
from serve.gateway.completions import CHAT_PATH, COMPLETIONS_PATH, completions_router
from serve.gateway.dispatch import Dispatcher
from serve.gateway.errors import install_handlers
from serve.gateway.health import health_router
from serve.gateway.home import home_router
from serve.gateway.limits import InFlightLimit, OnDemandShare
from serve.gateway.links import ControlLink, EngineLink
from serve.gateway.mirror import Mirror
from serve.gateway.models import models_router
from serve.gateway.observe import Observer
from serve.gateway.openapi import install_schema
from serve.gateway.predict import PATH as PREDICT_PATH
from serve.gateway.predict import predict_router
from serve.rollout.gateway_agent import GatewayAgent

INFERENCE_PATHS = (PREDICT_PATH, COMPLETIONS_PATH, CHAT_PATH)


def create_app(
    engines: EngineLink, control: ControlLink, agent: GatewayAgent, settings: Settings
) -> FastAPI:
    """The application of one gateway. The caller starts and stops `agent`."""
    app = FastAPI(
        title="Choir",
        description="One base model, many adapters, one fused answer.",
        docs_url=None,  # its page loads scripts from another host
        redoc_url=None,
        redirect_slashes=False,
    )
    guard = Guard(settings)
    bodies = BodyReader(settings.max_body_mb, settings.body_timeout_seconds)
    on_demand = OnDemandShare(settings.max_in_flight)
    dispatcher = Dispatcher(agent, settings.request_timeout_seconds, on_demand)
    mirror = Mirror(
        agent.ledger,
        queue=settings.shadow_queue,
        concurrency=settings.shadow_concurrency,
        seconds=settings.request_timeout_seconds,
    )

    app.include_router(home_router(agent))
    app.include_router(health_router(agent, control))
    for router in (
        predict_router(engines, dispatcher, mirror, bodies, settings.max_inputs),
        completions_router(engines, dispatcher, mirror, bodies),
    ):
        app.include_router(router, dependencies=[Depends(guard.inference)])
    for router in (models_router(agent), reading_router(control)):
        app.include_router(router, dependencies=[Depends(guard.reading)])
    app.include_router(admin_router(control, guard, bodies))

    install_handlers(app)
    install_schema(app)
    # The last one added is the outermost.
    app.add_middleware(InFlightLimit, paths=INFERENCE_PATHS, most=settings.max_in_flight)
    app.add_middleware(Observer)
    return app

"""The HTTP application of a gateway: its routes and its middleware."""

from functools import cache

from fastapi import Depends, FastAPI

from serve import metrics
from serve.agents.gateway_agent import GatewayAgent
from serve.config.settings import Settings
from serve.gateway.dispatch.dispatch import Dispatcher
from serve.gateway.dispatch.mirror import Mirror
from serve.gateway.dispatch.outcome import Outcomes
from serve.gateway.dispatch.places import EnginePlaces
from serve.gateway.dispatch.predictor import Predictor
from serve.gateway.drift import DriftWatch
from serve.gateway.http.auth import Guard
from serve.gateway.http.body import BodyReader
from serve.gateway.http.deadline import read_timeout
from serve.gateway.http.door import Door, Doorkeeper
from serve.gateway.http.errors import install_handlers
from serve.gateway.http.limits import InFlightLimit, OnDemandShare
from serve.gateway.http.observe import Observer
from serve.gateway.http.openapi import install_schema
from serve.gateway.links import ControlLink, EngineLink
from serve.gateway.routes.admin import admin_router, reading_router
from serve.gateway.routes.classify import PATH as CLASSIFY_PATH
from serve.gateway.routes.classify import classify_router
from serve.gateway.routes.completions import PATHS as OPENAI_PATHS
from serve.gateway.routes.completions import completions_router
from serve.gateway.routes.embeddings import PATH as EMBEDDINGS_PATH
from serve.gateway.routes.embeddings import embeddings_router
from serve.gateway.routes.health import health_router
from serve.gateway.routes.home import home_router
from serve.gateway.routes.lora import lora_router
from serve.gateway.routes.models import models_router
from serve.gateway.routes.predict import PATH as PREDICT_PATH
from serve.gateway.routes.predict import predict_router
from serve.gateway.routes.report import report_router
from serve.gateway.routes.tokens import DETOKENIZE_PATH, TOKENIZE_PATH, tokens_router

INFERENCE_PATHS = (
    PREDICT_PATH,
    CLASSIFY_PATH,
    EMBEDDINGS_PATH,
    *OPENAI_PATHS.values(),
    TOKENIZE_PATH,
    DETOKENIZE_PATH,
)


def create_app(
    engines: EngineLink,
    control: ControlLink,
    agent: GatewayAgent,
    settings: Settings,
    door: Door | None = None,
) -> FastAPI:
    """Return the application of one gateway. The caller starts and stops `agent`, and may close `door`."""
    app = FastAPI(
        title="Choir",
        description="One base model, many adapters, one fused answer.",
        docs_url=None,  # the page would load scripts from another host
        redoc_url=None,
        redirect_slashes=False,
    )
    metrics.refusals_counted()
    guard = Guard(settings)
    bodies = BodyReader(settings.max_body_mb, settings.body_timeout_seconds)
    outcomes = Outcomes(agent.ledger)

    @cache
    def of_one(pool: str) -> int:
        """The member sequences of one engine."""
        return settings.of_pool(pool).sequences

    def sequences(pool: str) -> int:
        """The member sequences that this gateway may have in the pool's engines that are ready now."""
        return max(1, of_one(pool) * max(1, agent.ready_engines(pool)) // settings.gateways)

    dispatcher = Dispatcher(
        agent,
        outcomes,
        settings.request_timeout_seconds,
        OnDemandShare(sequences),
        EnginePlaces(sequences, settings.queue, settings.shares),
    )
    mirror = Mirror(
        agent.ledger,
        outcomes,
        queue=settings.shadow_queue,
        concurrency=settings.shadow_concurrency,
        seconds=settings.request_timeout_seconds,
    )

    predictor = Predictor(engines, dispatcher, mirror, DriftWatch())
    app.include_router(home_router())
    app.include_router(health_router(agent, control))
    for router in (
        predict_router(predictor, bodies, settings.max_inputs),
        classify_router(predictor, bodies, settings.max_inputs),
        embeddings_router(engines, dispatcher, bodies, settings.max_inputs),
        completions_router(engines, dispatcher, mirror, bodies, settings.max_inputs),
        tokens_router(engines, dispatcher, bodies),
    ):
        app.include_router(router, dependencies=[Depends(guard.inference), Depends(read_timeout)])
    for router in (models_router(agent), reading_router(control), report_router(control)):
        app.include_router(router, dependencies=[Depends(guard.reading)])
    app.include_router(admin_router(control, guard, bodies))
    app.include_router(lora_router(control, guard, bodies))

    install_handlers(app)
    install_schema(app)
    # The middleware that is added last is the outermost.
    app.add_middleware(InFlightLimit, paths=INFERENCE_PATHS, most=settings.max_in_flight)
    app.add_middleware(Doorkeeper, door=door or Door())
    app.add_middleware(Observer)
    return app

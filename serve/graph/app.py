"""The Ray Serve graph: Gateway -> the engines of a pool, and the Controller beside them.

`build` is what `serve deploy` runs, `build_from` what `choir serve` does. Each deployment is a thin shell: it creates
its object, keeps its lease with the controller, pushes its metrics, and passes calls on.
"""

import asyncio
import contextlib
import gc
import logging
import os
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from dataclasses import replace
from time import monotonic
from typing import Any

import prometheus_client
import ray
import torch
from fastapi import FastAPI
from ray import serve as ray_serve
from ray.serve import Application
from ray.serve.config import RequestRouterConfig
from ray.serve.handle import DeploymentHandle

from serve.agents.engine_agent import EngineAgent
from serve.agents.gateway_agent import GatewayAgent
from serve.config.settings import Settings
from serve.control.admission.pools import Pool
from serve.control.controller import Controller
from serve.control.startup import ControllerOptions
from serve.engine.interface import (
    EmbedCall,
    Embeddings,
    EngineSettings,
    GenerateCall,
    PredictCall,
    Prediction,
)
from serve.errors import Refusal
from serve.gateway.app import create_app
from serve.gateway.http.door import Door
from serve.graph.autoscaling import SEQUENCES, engine_scaling
from serve.graph.pools import EnginePlace, EnginePool, engine_pools, gpus_of
from serve.graph.ray_links import RayControl, RayEngines
from serve.graph.shared_store import check_machines
from serve.graph.warm_router import WarmRouter
from serve.logs.events import tell, tell_phase
from serve.logs.process import LogSettings, log_also, open_log
from serve.ray_options import INGRESS, engine_environment, engine_threads
from serve.watching import spans
from serve.watching.board import families

logger = logging.getLogger(__name__)

APPLICATION = "choir"
CONTROLLER = "Controller"

START_FAILED = "Choir cannot start: "
"""Marks the reason in an exception that stops a deployment, so that `choir serve` finds it in Ray's message."""

UNBOUNDED = 1_000_000
"""Ray Serve's own limit, which must never be reached: Choir's limits answer 429 with Retry-After."""

DRAINING_SECONDS = 30.0
"""How long a gateway or an engine that Ray Serve stops, because there are too many or for new code, may go on with what
it has begun. It gets no new requests then."""

CLOSING_SECONDS = 2.0
"""How long an engine whose core is dead may take to end its other processes."""

FINISHING_SECONDS = 1.5
"""How long requests may go on when the server stops, before they are ended."""

ENDING_SECONDS = 0.5
"""How long the ends of those that were ended may take."""

ENGINE_SPAN = "choir.engine"

ENGINE_ROUTER = RequestRouterConfig(request_router_class=WarmRouter)

PUSH_SECONDS = 2.0
"""How often a process tells the controller its metrics."""


@contextlib.contextmanager
def _told_start(logs: LogSettings, kind: str) -> Iterator[str]:
    """Open the log of a deployment's process, and tell whether it has started. Mark the reason if it cannot start.
    Yields the name of the process."""
    name = f"{kind}-{ray_serve.get_replica_context().rank.rank}"
    open_log(logs, name)
    began = monotonic()
    try:
        yield name
    except Exception as error:
        reason = " ".join(str(error).split())
        tell(logger, "start_failed", reason)
        raise RuntimeError(f"{START_FAILED}{reason}") from error
    tell(logger, "started", f"{name} is ready after {monotonic() - began:.0f} s.")


@contextlib.contextmanager
def _no_garbage() -> Iterator[None]:
    """Within it, Python does not look for garbage, and what is made stays. While vLLM is imported, 700,000 objects are
    made, and a quarter to a third of the time would go into searching them."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


class ControllerDeployment:
    """The control plane. When it dies, a new one goes on from the database."""

    async def __init__(self, settings: Settings, pools: Sequence[Pool]) -> None:  # type: ignore[misc]  # Ray Serve awaits it
        with _told_start(settings.logs, "controller"):
            check_machines(settings, sum(node["Alive"] for node in ray.nodes()))
            self._controller = await Controller.open(ControllerOptions.of(settings, pools))
            await self._controller.start()
        for method in (
            *("sync", "push_metrics", "metrics"),
            *("swap", "make", "rollback", "promote", "abort", "prune"),
            *("rollouts", "rollout", "audit", "ensembles", "ensemble", "report", "shut_down"),
        ):
            setattr(self, method, getattr(self._controller, method))

    async def __del__(self) -> None:
        await self._controller.stop()


class EngineDeployment:
    """One vLLM engine. It is ready once it holds all active versions."""

    async def __init__(  # type: ignore[misc]  # Ray Serve awaits it
        self,
        settings: EngineSettings,
        place: EnginePlace,
        logs: LogSettings,
        controller: DeploymentHandle,
        spans_endpoint: str | None,
    ) -> None:
        if not place.threads_given:
            os.environ.update(engine_threads(_on_one_machine(place.engines)))
        with _told_start(logs, place.title) as name:
            spans.start(spans_endpoint, name)
            tell_phase(logger, "Importing vLLM")
            with _no_garbage():
                from serve.engine.vllm_engine import VLLMEngine

            log_also("vllm")
            self._engine = await VLLMEngine.start(settings)
            control = RayControl(controller)
            self._agent = EngineAgent(self._engine, control, pool=place.pool)
            await self._agent.start()
        self._watching = asyncio.create_task(self._end_with_core())
        self._pushing = asyncio.create_task(
            push_metrics(control, "engine", self._agent.participant, ("choir_", "vllm:"))
        )

    async def predict(self, call: PredictCall) -> Prediction | Refusal:
        with spans.within(ENGINE_SPAN, call.trace_headers) as span:
            span.note(choir__version=call.version, choir__inputs=len(call.inputs))
            async with self._agent.using(call.version) as refusal:
                return refusal or await self._engine.predict(call)

    async def embed(self, call: EmbedCall) -> Embeddings | Refusal:
        with spans.within(ENGINE_SPAN, call.trace_headers) as span:
            span.note(choir__version=call.version, choir__inputs=len(call.inputs))
            async with self._agent.using(call.version) as refusal:
                return refusal or await self._engine.embed(call)

    async def generate(self, call: GenerateCall) -> AsyncGenerator[bytes | Refusal, None]:
        span = spans.begin(ENGINE_SPAN, call.trace_headers)
        span.note(choir__version=call.version)
        call = replace(call, trace_headers=span.headers)
        try:
            async with self._agent.using(call.version) as refusal:
                if refusal is not None:
                    yield refusal
                    return
                async with contextlib.aclosing(self._engine.generate(call)) as parts:
                    async for part in parts:
                        yield part
        finally:
            span.end()

    async def check_health(self) -> None:
        await self._engine.check_health()

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Return what Ray Serve's controller decides by how many engines there are (`autoscaling.py`)."""
        return {SEQUENCES: self._engine.state().sequences}

    async def _end_with_core(self) -> None:
        """End this replica when vLLM's core dies. Ray replaces a replica that has ended at once. One that stayed would
        draw most requests until three health checks have failed, because it fails each request so fast that it never
        looks busy."""
        await self._engine.death()
        tell(logger, "lost", "vLLM's core is dead: this replica ends, and another one is started.")
        with contextlib.suppress(Exception):  # the rest of vLLM's processes
            await asyncio.wait_for(self._engine.close(), CLOSING_SECONDS)
        os._exit(1)

    async def __del__(self) -> None:
        self._watching.cancel()
        self._pushing.cancel()
        await self._agent.stop()
        await self._engine.close()
        spans.stop()


@ray_serve.ingress()
class GatewayDeployment:
    """HTTP in front of the engines."""

    async def __init__(  # type: ignore[misc]  # Ray Serve awaits it
        self,
        settings: Settings,
        engines: Mapping[str, DeploymentHandle],
        controller: DeploymentHandle,
    ) -> None:
        self._settings = settings
        self._engines = RayEngines(engines)
        self._control = RayControl(controller)
        self._agent = GatewayAgent(self._control)
        self._door = Door()
        with _told_start(settings.logs, "gateway") as name:
            spans.start(settings.otlp_endpoint, name)
            await self._agent.start()
        self._leaving = asyncio.create_task(self._leave_when_stopping())
        self._pushing = asyncio.create_task(
            push_metrics(self._control, "gateway", self._agent.participant, ("choir_",))
        )

    def __serve_build_asgi_app__(self) -> FastAPI:
        return create_app(
            engines=self._engines,
            control=self._control,
            agent=self._agent,
            settings=self._settings,
            door=self._door,
        )

    async def _leave_when_stopping(self) -> None:
        """When the server stops, finish the requests that can be finished soon, end the others, and leave."""
        await self._agent.stopping.wait()
        if not await self._door.close(FINISHING_SECONDS):
            self._engines.calls.end()
            self._control.calls.end()
            await self._door.close(ENDING_SECONDS)
        self._pushing.cancel()
        await self._agent.stop()
        spans.stop()


async def push_metrics(
    control: RayControl, kind: str, participant: str, prefixes: tuple[str, ...]
) -> None:
    """Push this process's metrics to the controller every few seconds, for ever."""
    while True:
        snapshot = families()
        if "vllm:" in prefixes:
            snapshot += families(prometheus_client.REGISTRY, "vllm:")
        try:
            await control.push_metrics(kind, participant, snapshot)
        except Exception as error:  # a dead controller: the next push contains everything again
            logger.debug("metrics were not pushed: %s", error)
        await asyncio.sleep(PUSH_SECONDS)


def _on_one_machine(engines: int) -> int:
    """How many of the engines run on one machine if they are spread evenly."""
    machines = sum(bool(node["Alive"]) for node in ray.nodes())
    return -(-engines // max(1, machines))


def build(args: Mapping[str, Any]) -> Application:
    """The graph for `serve deploy`: `args` are settings by name.

    Raises ConfigError and BundleError."""
    # Ray sets OMP_NUM_THREADS for the process that this runs in, which says nothing of the engines.
    return build_from(Settings.load(args), None)


def build_from(settings: Settings, threads: str | None) -> Application:
    """The graph of one server. `threads`: of one engine on the CPU; None: decided where the engine runs.

    Raises BundleError, BaseError and ConfigError."""
    endpoint = spans.endpoint_of(settings.otlp_endpoint)
    # Ray stores its arguments, so they are sealed.
    settings = settings.sealed().model_copy(update={"otlp_endpoint": endpoint})
    pools = engine_pools(settings)
    gpus = gpus_of(pools, _gpus_present())
    controller = _deployment(ControllerDeployment, CONTROLLER, {"num_replicas": 1}).bind(
        settings, [each.pool for each in pools]
    )
    engines = {
        each.pool.name: _engines(each, pools, gpus[each.pool.name], settings, threads, controller)
        for each in pools
    }
    gateway = _deployment(
        GatewayDeployment,
        "Gateway",
        {"num_replicas": settings.gateways} | _spread(settings.gateways),
        ray_actor_options={"num_cpus": 0, "runtime_env": {"env_vars": dict(INGRESS)}},
        graceful_shutdown_timeout_s=DRAINING_SECONDS,
    )
    known = settings.model_copy(update={"database_url": None})
    return gateway.bind(known, engines, controller)


def _engines(
    pool: EnginePool,
    pools: Sequence[EnginePool],
    gpus: float,
    settings: Settings,
    threads: str | None,
    controller: Application,
) -> Application:
    """The engines of one pool. If it is the only one, its name stands nowhere."""
    name = pool.pool.name
    several = len(pools) > 1
    own = settings.of_pool(name)
    share = gpus if 0 < gpus < 1 else pool.engine.share if not gpus else 1.0
    return _deployment(
        EngineDeployment,
        f"Engine-{name}" if several else "Engine",
        engine_scaling(own) | _spread(max(own.replicas, own.max_replicas)),
        request_router_config=ENGINE_ROUTER,
        ray_actor_options={
            "num_cpus": 0,
            "num_gpus": gpus,
            "runtime_env": {"env_vars": dict(engine_environment(threads))},
        },
        health_check_period_s=5,
        graceful_shutdown_timeout_s=DRAINING_SECONDS,
    ).bind(
        replace(pool.engine, share=share),
        EnginePlace(
            name,
            f"engine-{name}" if several else "engine",
            sum(each.pool.replicas for each in pools),
            bool(threads),
        ),
        settings.logs,
        controller,
        settings.otlp_endpoint,
    )


def _deployment(shell: type, name: str, scaling: Mapping[str, Any], **options: Any) -> Any:
    return ray_serve.deployment(shell).options(
        name=name,
        **scaling,
        max_ongoing_requests=UNBOUNDED,
        # Choir logs the requests.
        logging_config={"enable_access_log": False},
        **{"ray_actor_options": {"num_cpus": 0}, **options},
    )


def _spread(replicas: int) -> dict[str, int]:
    """Return the option that keeps replicas on different nodes, as far as there are enough. Ray's own spreading goes
    over all deployments together, so both gateways may land on one node."""
    nodes = sum(bool(node["Alive"]) for node in ray.nodes()) if ray.is_initialized() else 1
    return {"max_replicas_per_node": -(-replicas // nodes)} if nodes > 1 else {}


def _gpus_present() -> float:
    """The GPUs of the cluster. Engines may run on another machine than this code. Before Ray runs, it is going to run
    on this machine alone."""
    if ray.is_initialized():
        return float(ray.cluster_resources().get("GPU", 0))
    return float(torch.cuda.device_count())

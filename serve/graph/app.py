"""The Ray Serve graph: Gateway -> Engine, and the Controller beside them.

`build` is what `serve deploy` runs, `build_from` what `choir serve` does. Each deployment is a thin shell: it creates
its object, keeps its lease with the controller, pushes its metrics, and passes calls on.
"""

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncGenerator, Iterator, Mapping
from time import monotonic
from typing import Any

import prometheus_client
import ray
import torch
from fastapi import FastAPI
from ray import serve as ray_serve
from ray.serve import Application
from ray.serve.handle import DeploymentHandle

from serve import metrics
from serve.agents.engine_agent import EngineAgent
from serve.agents.gateway_agent import GatewayAgent
from serve.bundle import Bundle
from serve.config import Settings
from serve.control.admission.admission import EngineLimits
from serve.control.controller import Controller
from serve.control.startup import ControllerOptions
from serve.engine.interface import EngineSettings, GenerateCall, PredictCall, Prediction
from serve.errors import Refusal
from serve.gateway.app import create_app
from serve.gateway.http.door import Door
from serve.graph.autoscaling import SEQUENCES, engine_scaling
from serve.graph.ray_links import RayControl, RayEngines
from serve.graph.shared_store import check_machines
from serve.logs.events import tell, tell_phase
from serve.logs.process import LogSettings, log_also, open_log
from serve.ray_options import INGRESS, engine_environment

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

PUSH_SECONDS = 2.0
"""How often a process tells the controller its metrics."""


@contextlib.contextmanager
def _told_start(logs: LogSettings, kind: str) -> Iterator[None]:
    """Open the log of a deployment's process, and tell whether it has started. Mark the reason if it cannot start."""
    name = f"{kind}-{ray_serve.get_replica_context().rank.rank}"
    open_log(logs, name)
    began = monotonic()
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split())
        tell(logger, "start_failed", reason)
        raise RuntimeError(f"{START_FAILED}{reason}") from error
    tell(logger, "started", f"{name} is ready after {monotonic() - began:.0f} s.")


class ControllerDeployment:
    """The control plane. When it dies, a new one goes on from the database."""

    async def __init__(self, settings: Settings, limits: EngineLimits) -> None:  # type: ignore[misc]  # Ray Serve awaits it
        with _told_start(settings.logs, "controller"):
            check_machines(settings, sum(node["Alive"] for node in ray.nodes()))
            self._controller = await Controller.open(ControllerOptions.of(settings, limits))
            await self._controller.start()
        for method in (
            *("sync", "push_metrics", "metrics"),
            *("swap", "rollback", "promote", "abort"),
            *("rollouts", "rollout", "audit", "ensembles", "ensemble", "report", "shut_down"),
        ):
            setattr(self, method, getattr(self._controller, method))

    async def __del__(self) -> None:
        await self._controller.stop()


class EngineDeployment:
    """One vLLM engine. It is ready once it holds all active versions."""

    async def __init__(  # type: ignore[misc]  # Ray Serve awaits it
        self, settings: EngineSettings, logs: LogSettings, controller: DeploymentHandle
    ) -> None:
        with _told_start(logs, "engine"):
            tell_phase(logger, "Importing vLLM")
            from serve.engine.vllm_engine import VLLMEngine

            log_also("vllm")
            self._engine = await VLLMEngine.start(settings)
            control = RayControl(controller)
            self._agent = EngineAgent(self._engine, control)
            await self._agent.start()
        self._watching = asyncio.create_task(self._end_with_core())
        self._pushing = asyncio.create_task(
            push_metrics(control, "engine", self._agent.participant, ("choir_", "vllm:"))
        )

    async def predict(self, call: PredictCall) -> Prediction | Refusal:
        async with self._agent.using(call.version) as refusal:
            return refusal or await self._engine.predict(call)

    async def generate(self, call: GenerateCall) -> AsyncGenerator[bytes | Refusal, None]:
        async with self._agent.using(call.version) as refusal:
            if refusal is not None:
                yield refusal
                return
            async with contextlib.aclosing(self._engine.generate(call)) as parts:
                async for part in parts:
                    yield part

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


@ray_serve.ingress()
class GatewayDeployment:
    """HTTP in front of the engines."""

    async def __init__(  # type: ignore[misc]  # Ray Serve awaits it
        self, settings: Settings, engines: DeploymentHandle, controller: DeploymentHandle
    ) -> None:
        self._settings = settings
        self._engines = RayEngines(engines)
        self._control = RayControl(controller)
        self._agent = GatewayAgent(self._control)
        self._door = Door()
        with _told_start(settings.logs, "gateway"):
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


async def push_metrics(
    control: RayControl, kind: str, participant: str, prefixes: tuple[str, ...]
) -> None:
    """Push this process's metrics to the controller every few seconds, for ever."""
    while True:
        families = metrics.families()
        if "vllm:" in prefixes:
            families += metrics.families(prometheus_client.REGISTRY, "vllm:")
        try:
            await control.push_metrics(kind, participant, families)
        except Exception as error:  # a dead controller: the next push contains everything again
            logger.debug("metrics were not pushed: %s", error)
        await asyncio.sleep(PUSH_SECONDS)


def build(args: Mapping[str, Any]) -> Application:
    """The graph for `serve deploy`: `args` are settings by name.

    Raises ConfigError and BundleError."""
    return build_from(Settings.load(args))


def build_from(settings: Settings) -> Application:
    """The graph of one server. Raises BundleError and BaseError."""
    settings = settings.sealed()  # Ray stores its arguments
    bundles = [Bundle.open(path) for path in settings.bundles]
    base = bundles[0]  # the controller refuses bundles of another base
    base.check_base()
    digests = {
        digest
        for bundle in bundles
        for name in {ensemble.name for ensemble in bundle.ensembles()}
        for digest in bundle.ensemble(name).digests
    }
    slots = settings.slots(len(digests))
    limits = EngineLimits(
        adapter_slots=slots,
        max_lora_rank=settings.max_lora_rank,
        base_kind=base.base_kind(),
        base_path=base.base_folder,
        max_members=settings.max_members,
        host_adapters=settings.loadable(slots),
    )
    engine_settings = EngineSettings(
        model=base.base_source,
        revision=base.base_revision,
        kind=base.base_kind(),
        dtype=settings.dtype,
        adapter_slots=slots,
        max_lora_rank=settings.max_lora_rank,
        host_adapters=settings.loadable(slots),
        arguments={
            name: value
            for name, value in settings.engine.items()
            if name not in ("max_loras", "max_lora_rank")
        },
    )
    controller = _deployment(ControllerDeployment, CONTROLLER, {"num_replicas": 1}).bind(
        settings, limits
    )
    engine = _deployment(
        EngineDeployment,
        "Engine",
        engine_scaling(settings),
        ray_actor_options={
            "num_cpus": 0,
            "num_gpus": _gpus(settings),
            "runtime_env": {"env_vars": dict(engine_environment(settings.replicas))},
        },
        health_check_period_s=5,
        graceful_shutdown_timeout_s=DRAINING_SECONDS,
    ).bind(engine_settings, settings.logs, controller)
    gateway = _deployment(
        GatewayDeployment,
        "Gateway",
        {"num_replicas": settings.gateways},
        ray_actor_options={"num_cpus": 0, "runtime_env": {"env_vars": dict(INGRESS)}},
        graceful_shutdown_timeout_s=DRAINING_SECONDS,
    )
    return gateway.bind(settings.model_copy(update={"database_url": None}), engine, controller)


def _deployment(shell: type, name: str, scaling: Mapping[str, Any], **options: Any) -> Any:
    return ray_serve.deployment(shell).options(
        name=name,
        **scaling,
        max_ongoing_requests=UNBOUNDED,
        # Choir logs the requests.
        logging_config={"enable_access_log": False},
        **{"ray_actor_options": {"num_cpus": 0}, **options},
    )


def _gpus(settings: Settings) -> float:
    """The GPUs of one engine: one for each tensor and pipeline parallel rank, or 0 if there are no GPUs.

    An engine may run on another machine than this code, so on a cluster the cluster's GPUs count."""
    if not _has_gpus():
        return 0
    parallel = ("tensor_parallel_size", "pipeline_parallel_size")
    gpus = 1
    for name in parallel:
        gpus *= int(settings.engine.get(name, 1))
    return gpus


def _has_gpus() -> bool:
    if ray.is_initialized():
        return bool(ray.cluster_resources().get("GPU"))
    return bool(torch.cuda.is_available())

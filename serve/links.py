"""The protocols of gateway and rollout over Ray Serve's deployment handles."""

from collections.abc import AsyncIterator
from typing import Any

from ray.serve.exceptions import BackPressureError
from ray.serve.handle import DeploymentHandle

from serve.engine.interface import GenerateCall, PredictCall, Prediction, Refusal
from serve.metrics import Family
from serve.rollout.messages import Desired, Report


class RayController:
    """The controller, from any other process: `ControllerLink` for leases, `ControlLink` for the gateway's routes."""

    def __init__(self, handle: DeploymentHandle) -> None:
        self._handle = handle

    async def sync(self, report: Report) -> Desired:
        desired: Desired = await self._handle.sync.remote(report)
        return desired

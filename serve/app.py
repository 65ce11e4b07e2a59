"""The Ray Serve graph: Gateway -> Engine, and the Controller beside them.

`build` is what `serve deploy` runs, `build_from` what `choir serve` does. Each deployment is a thin shell: it makes its
object, keeps its lease with the controller, pushes its metrics, and passes calls on.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Mapping
from typing import Any

import prometheus_client
from fastapi import FastAPI
from ray import serve as ray_serve
from ray.serve import Application
from ray.serve.handle import DeploymentHandle


"""Runs Choir's graph on a Ray cluster: on its own on loopback, or on the one that `--address` names."""

import contextlib
import logging
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import ray
from ray import serve as ray_serve
from ray.exceptions import RayError
from ray.serve.context import _get_global_client
from ray.serve.handle import DeploymentHandle

from serve.config.settings import Settings
from serve.errors import first_line, last_line
from serve.graph.app import APPLICATION, CONTROLLER, START_FAILED, build_from
from serve.graph.lifecycle import ServerError, stop_on_signals
from serve.graph.run_folder import end_processes

POLL_SECONDS = 0.25
LEAVING_SECONDS = 2.5
"""How long the server has to finish what it has begun when it stops."""
STARTS = 2
"""How often Ray may be started."""
TOO_LATE = "timed out during startup"
"""In the message of the plain `Exception` that Ray raises."""


@contextlib.contextmanager
def serving(
    settings: Settings,
    folder: Path,
    look: Callable[[], None],
    phase: Callable[[str], None],
    stop: threading.Event,
) -> Iterator[None]:
    """Deploy the graph, and delete it at the end; with Ray, if Ray was started here.

    `folder` takes Ray's temporary files. `look` is called again and again meanwhile, and may raise. `phase` is told how
    far the start has come. `stop` ends the wait for the deployment early. Raises ServerError and BundleError."""
    threads = os.environ.get("OMP_NUM_THREADS")
    application = None
    if not settings.address:
        application = build_from(settings, threads)  # fails before Ray has started
    with _joined(settings.address) if settings.address else _own(folder):
        application = application or build_from(settings, threads)
        deployed = False
        try:
            stop_on_signals(stop)
            _listen(settings)
            phase("Starting the engines")
            deployed = _deploy(application, look, stop, lasting=settings.address is not None)
            yield
        finally:
            if deployed:
                _leave()
            if settings.address:
                ray_serve.delete(APPLICATION)


def controller() -> DeploymentHandle:
    """Return the handle of the controller of a graph that runs, for `choir serve`, which has no event loop."""
    handle = ray_serve.get_deployment_handle(CONTROLLER, APPLICATION)
    if not handle.is_initialized:
        # By `ray_options`, Ray would look for an event loop that runs here.
        handle._init(_run_router_in_separate_loop=True)
    return handle


def _leave() -> None:
    """Have the server finish what it has begun, for a few seconds at most."""
    with contextlib.suppress(Exception):  # a dead controller: nobody can be told
        controller().shut_down.remote().result(timeout_s=LEAVING_SECONDS)


@contextlib.contextmanager
def _own(folder: Path) -> Iterator[None]:
    _start(folder)
    try:
        yield
    finally:
        _end()


def _start(folder: Path) -> None:
    """Start Ray. On a busy machine it may miss Ray's own limit of 30 s, so it is tried again. Raises ServerError."""
    for _ in range(STARTS):
        try:
            ray.init(
                # Else Ray might join a cluster that RAY_ADDRESS or a file of another Ray names.
                address="local",
                _node_ip_address="127.0.0.1",
                _temp_dir=str(folder / "ray"),
                namespace=APPLICATION,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                object_store_memory=256 << 20,
            )
        except Exception as error:
            if TOO_LATE not in str(error):
                raise
            _end()
        else:
            return
    raise ServerError(
        f"Ray did not start within 30 s, {STARTS} times. The machine may be too busy; try again."
    )


def _end() -> None:
    """End Ray and all of its processes.

    Ray Serve's own shutdown would wait up to 10 s for the parts of an application that goes as a whole, and Ray's for
    1 s until its helpers in Python follow a signal. These hold nothing that matters any more."""
    processes = psutil.Process().children(recursive=True)
    for each in psutil.Process().children():
        with contextlib.suppress(psutil.Error):
            if "python" in each.name():
                each.kill()
    with contextlib.suppress(Exception):
        ray.shutdown()
    end_processes(processes)


@contextlib.contextmanager
def _joined(address: str) -> Iterator[None]:
    try:
        ray.init(
            address=address,
            namespace=APPLICATION,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ServerError(
            f"No Ray cluster can be joined at {address}: {first_line(error)}"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _listen(settings: Settings) -> None:
    """Start Ray Serve's HTTP proxy. Raises ServerError if the cluster's proxy listens on another port already."""
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    try:
        ray_serve.start(
            proxy_location="HeadOnly", http_options={"host": settings.host, "port": settings.port}
        )
    except RayError as error:
        reason = last_line(error)
        raise ServerError(f"Ray Serve's HTTP proxy does not start: {reason}") from error
    port = _get_global_client().http_config.port
    if port != settings.port:
        raise ServerError(
            f"Ray Serve on this cluster listens on port {port} already, and cannot be moved while it runs: give "
            f"--port {port}, or shut it down first (serve shutdown)."
        )


def _deploy(
    application: ray_serve.Application,
    look: Callable[[], None],
    stop: threading.Event,
    *,
    lasting: bool,
) -> bool:
    """Deploy the graph in a thread, so that signals are handled meanwhile. Returns whether it is there. Raises
    ServerError.

    `lasting`: whether Ray goes on when this process ends."""
    failures: list[Exception] = []

    def deploy() -> None:
        try:
            ray_serve.run(application, name=APPLICATION, route_prefix="/")
        except Exception as error:  # raised by the waiting thread
            failures.append(error)

    if stop.is_set():
        return False
    thread = threading.Thread(target=deploy, daemon=True)
    thread.start()
    while thread.is_alive() and not stop.is_set():
        thread.join(POLL_SECONDS)
        look()
    while lasting and thread.is_alive() and APPLICATION not in ray_serve.status().applications:
        thread.join(POLL_SECONDS)  # else it would come after its deletion, and stay
    if failures:
        raise ServerError(_reason(failures[0])) from failures[0]
    return not thread.is_alive()


def _reason(error: Exception) -> str:
    """The reason why a deployment stopped, from Ray's report."""
    text = str(error)
    with contextlib.suppress(Exception):  # the error itself is known, the report only adds to it
        status = ray_serve.status().applications[APPLICATION]
        text += "".join(deployment.message for deployment in status.deployments.values())
    if START_FAILED in text:
        return text.split(START_FAILED, 1)[1].splitlines()[0].strip()
    return first_line(error)

"""`choir serve`: start Ray closed to the network, run the graph, say when it answers, stop it cleanly."""

import contextlib
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator

import httpx
import ray
from ray import serve as ray_serve

from serve import ray_options
from serve.app import APPLICATION, START_FAILED, build_from
from serve.config import Settings

READY_POLL_SECONDS = 0.25


class ServerError(RuntimeError):
    """Why the server cannot start, in one sentence."""


def run(settings: Settings) -> int:
    """Serve until SIGTERM or Ctrl-C; returns the exit status.

    Raises ServerError (and what `build_from` raises) before anything is served."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    with _ray(settings), _application(settings, stop):
        if stop.is_set():
            return 0
        _wait_until_ready(settings, stop)
        if not stop.is_set():
            print(f"Choir answers on {url(settings)}", flush=True)
        stop.wait()
        print("Stopping.", flush=True)
    return 0


def url(settings: Settings) -> str:
    """Where this machine reaches the server."""
    host = "127.0.0.1" if settings.host in ("0.0.0.0", "::") else settings.host
    return f"http://{f'[{host}]' if ':' in host else host}:{settings.port}"


@contextlib.contextmanager
def _ray(settings: Settings) -> Iterator[None]:
    """A Ray of our own on loopback, or the cluster that `--address` names."""
    _check_port(settings)
    if settings.address is not None:
        try:
            ray.init(address=settings.address, namespace=APPLICATION, log_to_driver=False)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise ServerError(
                f"No Ray cluster can be joined at {settings.address}: {_first_line(error)}"
            ) from error
    else:
        fast = ray_options.fast_serve()
        os.environ.update(ray_options.closed_to_the_network() | fast)
        proxy = "HAProxy" if "RAY_SERVE_ENABLE_HA_PROXY" in fast else "Ray Serve's own proxy"
        print(f"Starting Ray on this machine: token authentication, {proxy} in front.", flush=True)
        ray.init(
            _node_ip_address="127.0.0.1",
            namespace=APPLICATION,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            object_store_memory=256 << 20,
        )
    try:
        yield
    finally:
        ray.shutdown()


def _check_port(settings: Settings) -> None:
    """A taken port is said here, and not by a proxy that cannot bind it, in a log file."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.host, settings.port))
        except OSError as error:
            raise ServerError(
                f"Port {settings.port} on {settings.host} cannot be used ({error.strerror}): choose another with --port."
            ) from error


@contextlib.contextmanager
def _application(settings: Settings, stop: threading.Event) -> Iterator[None]:
    """The graph, running."""
    own = settings.address is None
    if own:
        ray_serve.start(
            proxy_location="HeadOnly", http_options={"host": settings.host, "port": settings.port}
        )
    deploying = threading.Thread(target=_deploy, args=(settings, failure := []), daemon=True)
    deploying.start()
    try:
        while deploying.is_alive() and not stop.is_set():
            deploying.join(READY_POLL_SECONDS)
        if failure:
            raise ServerError(_reason(failure[0]))
        yield
    finally:
        if own:
            ray_serve.shutdown()
        else:
            ray_serve.delete(APPLICATION)


def _deploy(settings: Settings, failure: list[Exception]) -> None:
    try:
        ray_serve.run(build_from(settings), name=APPLICATION, route_prefix="/")
    except Exception as error:  # handed to the main thread, which waits for signals too
        failure.append(error)


def _wait_until_ready(settings: Settings, stop: threading.Event) -> None:
    while not stop.is_set():
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{url(settings)}/ready", timeout=5).status_code == 200:
                return
        time.sleep(READY_POLL_SECONDS)


def _reason(error: Exception) -> str:
    """The sentence that a deployment stopped with, out of Ray's report."""
    text = str(error)
    with contextlib.suppress(Exception):
        status = ray_serve.status().applications[APPLICATION]
        text += "".join(deployment.message for deployment in status.deployments.values())
    if START_FAILED in text:
        return text.split(START_FAILED, 1)[1].splitlines()[0].strip()
    return _first_line(error)


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), repr(error))


def fail(error: Exception) -> int:
    """Say why the server cannot start; returns the exit status."""
    print(f"choir serve: {error}", file=sys.stderr)
    return 1

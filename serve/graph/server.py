"""`choir serve`: starts the server, says when it answers, and runs until it is stopped."""

import contextlib
import os
import socket
import threading

import httpx

from serve import ray_options
from serve.config import Settings, forget_secrets
from serve.graph.lifecycle import ServerError, stop_on_signals

READY_POLL_SECONDS = 0.25


def run(settings: Settings) -> int:
    """Serve until SIGTERM or Ctrl-C, and return the exit status.

    Raises ServerError, and BundleError for bundles that cannot be served together."""
    stop = threading.Event()
    stop_on_signals(stop)
    forget_secrets()
    if settings.address is None:
        _check_port(settings)
        fast = ray_options.fast_serve()
        os.environ.update(ray_options.own_cluster() | fast)
        proxy = "HAProxy" if "RAY_SERVE_ENABLE_HA_PROXY" in fast else "Ray Serve's own proxy"
        print(f"Starting Ray on this machine: token authentication, {proxy} in front.", flush=True)
    # Ray reads its options when it is imported.
    from serve.graph.cluster import serving
    from serve.graph.start_notes import start_notes

    with serving(settings, stop):
        _wait_until_ready(settings, stop)
        if not stop.is_set():
            if said := start_notes(url(settings)):
                print(said, flush=True)
            print(f"Choir answers on {url(settings)}", flush=True)
        stop.wait()
        print("Stopping.", flush=True)
    return 0


def url(settings: Settings) -> str:
    """The URL of the server on this machine."""
    host = "127.0.0.1" if settings.host in ("0.0.0.0", "::") else settings.host
    return f"http://{f'[{host}]' if ':' in host else host}:{settings.port}"


def _check_port(settings: Settings) -> None:
    """Raises ServerError if the port is taken. Ray's proxy would say so only in a log file."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.host, settings.port))
        except OSError as error:
            raise ServerError(
                f"Port {settings.port} on {settings.host} cannot be used ({error.strerror}): "
                "choose another with --port."
            ) from error


def _wait_until_ready(settings: Settings, stop: threading.Event) -> None:
    while not stop.is_set():
        with contextlib.suppress(httpx.TransportError):
            ready = httpx.get(f"{url(settings)}/ready", timeout=5, trust_env=False)
            if ready.status_code == 200:
                return
        stop.wait(READY_POLL_SECONDS)

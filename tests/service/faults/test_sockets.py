"""The ports on which a running server listens, and who may use them."""

import os
import subprocess
import sys
from dataclasses import dataclass
from ipaddress import ip_address

import grpc
import httpx
import psutil
import pytest

from tests.service.running import Service

pytestmark = pytest.mark.engine

FIGURES = 5
"""Pages of figures that can be read and nothing else: HAProxy's two, and those of Ray's dashboard, autoscaler and
agent."""
HARMLESS = ("refusal", "figures", "no service")
METHODS = (
    "/ray.rpc.NodeInfoGcsService/GetAllNodeInfo",
    "/ray.rpc.NodeManagerService/GetNodeStats",
    "/ray.rpc.ObjectManagerService/FreeObjects",
    "/ray.rpc.CoreWorkerService/GetCoreWorkerStats",
    "/ray.rpc.ReporterService/GetTraceback",
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
    """Without a token, a port refuses, shows figures, or offers no service of Ray's."""
    seen = {each: what_a_stranger_gets(each) for each in open_listeners}
    unknown = {each: what for each, what in seen.items() if what not in HARMLESS}
    assert unknown == {}
    assert len([each for each, what in seen.items() if what == "figures"]) <= FIGURES


@pytest.mark.slow
def test_ray_lets_nobody_in_without_its_token(open_listeners: set[Listener]) -> None:
    """Ray's own client, which could run code here, is refused."""
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


def what_a_stranger_gets(listener: Listener) -> str:
    """Return what a port answers without a token: `refusal`, `figures`, `no service` (it offers none of METHODS), or
    the answer itself."""
    any_address = ip_address(listener.address).is_unspecified
    address = "127.0.0.1" if any_address else listener.address
    try:
        page = httpx.get(f"http://{address}:{listener.port}/", timeout=10, trust_env=False)
    except httpx.HTTPError:  # it speaks gRPC
        return _of_grpc(f"{address}:{listener.port}")
    if page.status_code in (401, 403):
        return "refusal"
    pages = [page]
    for path in ("metrics", "stats"):
        url = f"http://{address}:{listener.port}/{path}"
        pages.append(httpx.get(url, timeout=10, trust_env=False))
    given = [each for each in pages if each.status_code == 200]
    if given and all("# HELP" in each.text or "Statistics Report" in each.text for each in given):
        return "figures"
    return f"HTTP {[(each.url.path, each.status_code, each.text[:80]) for each in pages]}"


def _of_grpc(target: str) -> str:
    codes = []
    with grpc.insecure_channel(target) as channel:
        for method in METHODS:
            try:
                channel.unary_unary(method)(b"", timeout=10)
            except grpc.RpcError as error:
                codes.append(error.code().name)
            else:
                return f"an answer to {method}"
    if set(codes) == {"UNIMPLEMENTED"}:
        return "no service"
    return "refusal" if "UNAUTHENTICATED" in codes else f"gRPC {codes}"

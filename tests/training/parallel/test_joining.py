"""How a run joins a cluster, and what it says if the cluster refuses it."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from training.parallel import cluster
from training.parallel.options import ClusterError, Parallel


def test_every_node_is_asked_if_several_share_an_address(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    nodes = [{"NodeID": each * 56, "NodeManagerAddress": "192.0.2.1"} for each in "ab"]
    sees = {nodes[1]["NodeID"]}

    def options(scheduling_strategy: Any) -> Any:
        node = scheduling_strategy.node_id
        return SimpleNamespace(remote=lambda paths: [] if node in sees else paths)

    monkeypatch.setattr(cluster, "machines", lambda: nodes)
    monkeypatch.setattr(cluster, "_missing", SimpleNamespace(options=options))
    monkeypatch.setattr(ray, "get", lambda answer, timeout: answer)
    with pytest.raises(ClusterError, match=r"/base is not found on the machine 192\.0\.2\.1"):
        cluster.demand([Path("/base")])
    sees.add(nodes[0]["NodeID"])
    cluster.demand([Path("/base")])


def test_a_cluster_that_refuses_the_token_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: Any) -> None:
        raise ray.exceptions.AuthenticationError("no token was given")

    monkeypatch.setattr(ray, "init", refuse)
    said = r"Cannot join the Ray cluster at 192\.0\.2\.1:6379: .*no token was given"
    with pytest.raises(ClusterError, match=said), cluster.joined(Parallel("192.0.2.1:6379")):
        pass

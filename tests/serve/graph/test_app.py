"""The resources that the graph asks for."""

from typing import Any

import pytest
import ray
import torch

from serve.config import Settings
from serve.graph.app import _gpus

BUNDLE = {"bundles": ["b"]}


@pytest.mark.parametrize(
    ("engine", "gpus"),
    [({}, 1), ({"tensor_parallel_size": 2, "pipeline_parallel_size": 3}, 6)],
)
def test_an_engine_takes_gpus_where_the_cluster_has_some_whatever_this_machine_has(
    monkeypatch: pytest.MonkeyPatch, engine: dict[str, Any], gpus: int
) -> None:
    settings = Settings.load(BUNDLE | {"engine": engine})
    resources = {"CPU": 8.0, "GPU": 8.0}
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "cluster_resources", lambda: resources)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert _gpus(settings) == gpus
    del resources["GPU"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert _gpus(settings) == 0


@pytest.mark.parametrize("here", [True, False])
def test_before_ray_runs_this_machine_counts(monkeypatch: pytest.MonkeyPatch, here: bool) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: here)
    assert _gpus(Settings.load(BUNDLE)) == here

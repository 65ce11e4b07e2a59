"""The GPUs that the graph sees."""

import pytest
import ray
import torch

from serve.graph.app import _gpus_present


def test_an_engine_takes_gpus_where_the_cluster_has_some_whatever_this_machine_has(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    resources = {"CPU": 8.0, "GPU": 8.0}
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "cluster_resources", lambda: resources)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert _gpus_present() == 8
    del resources["GPU"]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert _gpus_present() == 0


@pytest.mark.parametrize("here", [0, 2])
def test_before_ray_runs_this_machine_counts(monkeypatch: pytest.MonkeyPatch, here: int) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: here)
    assert _gpus_present() == here

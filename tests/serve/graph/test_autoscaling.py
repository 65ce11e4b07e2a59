"""How many engines Ray Serve is asked for, by its own policy machinery."""

from types import SimpleNamespace
from typing import Any

import pytest
from ray.serve.autoscaling_policy import _apply_autoscaling_config
from ray.serve.config import AutoscalingConfig

from serve.config.settings import Settings
from serve.graph.autoscaling import SEQUENCES, engine_scaling


def settings(**given: Any) -> Settings:
    return Settings.load({"bundles": ["b"], **given})


def wanted(engines: int, *sequences: float, **given: Any) -> int:
    """Return the engines that Ray Serve wants, by the policy as it arrives there, without delays."""
    config = AutoscalingConfig(
        **engine_scaling(settings(max_replicas=4, engine={"max_num_seqs": 10}, **given))[
            "autoscaling_config"
        ]
        | {"upscale_delay_s": 0, "downscale_delay_s": 0}
    )
    policy = _apply_autoscaling_config(config.policy.get_policy())
    reported = {SEQUENCES: {f"engine-{place}": value for place, value in enumerate(sequences)}}
    context = SimpleNamespace(
        current_num_replicas=engines,
        target_num_replicas=engines,
        total_num_requests=0,
        aggregated_metrics=reported if sequences else {},
        policy_state={},
        config=config,
    )
    number, _ = policy(context)
    return number


def test_a_full_engine_asks_for_another_one() -> None:
    assert wanted(1, 7) == 1
    assert wanted(1, 8) == 2
    assert wanted(2, 10, 10) == 3


def test_a_fused_request_counts_for_each_member() -> None:
    """Three requests to an ensemble of three: Ray Serve alone would count three, which need one engine."""
    assert wanted(1, 3 * 1) == 1
    assert wanted(1, 3 * 3) == 2


def test_idle_engines_are_not_kept() -> None:
    assert wanted(4, 0, 0, 0, 0) == 1
    assert wanted(3, 7, 1, 1) == 2


def test_ray_serve_is_told_the_bounds() -> None:
    config = AutoscalingConfig(
        **engine_scaling(settings(replicas=2, max_replicas=4))["autoscaling_config"]
    )
    assert (config.min_replicas, config.max_replicas) == (2, 4)


def test_engines_that_have_not_reported_change_nothing() -> None:
    assert wanted(2) == 2


@pytest.mark.parametrize("given", [{}, {"replicas": 3}, {"replicas": 3, "max_replicas": 2}])
def test_without_more_at_most_the_number_is_fixed(given: dict[str, Any]) -> None:
    assert engine_scaling(settings(**given)) == {"num_replicas": given.get("replicas", 1)}

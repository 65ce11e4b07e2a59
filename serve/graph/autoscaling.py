"""How many engines there are: as many as the member sequences need that are being worked on.

Ray Serve by itself counts requests. A request to an ensemble of three members is as much work as three requests to one
member, so engines report their sequences, and this policy decides by them."""

import math
from typing import Any

from ray.serve.config import AutoscalingContext

from serve.config.settings import Settings

SEQUENCES = "member_sequences"
"""The name under which an engine reports the sequences that run in it and that wait in its queue."""
FULL = 0.7
"""The share of an engine's sequences from which on there are too few engines. Gateways let an engine be full, never
more, so at 1 no load would call for another one."""
UPSCALE_SECONDS = 15.0
"""How long engines must be too few before another one is started. It then takes its time to load the base."""
DOWNSCALE_SECONDS = 300.0


def by_sequences(context: AutoscalingContext) -> tuple[float, dict[str, Any]]:
    """Return how many engines the reported sequences need, for Ray Serve, which applies delays and bounds.

    Engines that have not reported yet count as those that have, on average: they load."""
    reported = (context.aggregated_metrics or {}).get(SEQUENCES, {})
    if not reported:
        return context.target_num_replicas, {}
    target = context.config.get_target_ongoing_requests()
    return max(1, math.ceil(sum(reported.values()) / target)), {}


def engine_scaling(settings: Settings) -> dict[str, Any]:
    """Return the options of the engines' deployment that say how many there are."""
    if settings.max_replicas <= settings.replicas:
        return {"num_replicas": settings.replicas}
    return {
        "num_replicas": "auto",
        "autoscaling_config": {
            "min_replicas": settings.replicas,
            "max_replicas": settings.max_replicas,
            "target_ongoing_requests": FULL * settings.sequences,
            "upscale_delay_s": UPSCALE_SECONDS,
            "downscale_delay_s": DOWNSCALE_SECONDS,
            "look_back_period_s": 20,
            "policy": {"policy_function": f"{__name__}:{by_sequences.__name__}"},
        },
    }

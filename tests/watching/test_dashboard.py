"""Every query of the dashboard has data where a server is under load."""

from pathlib import Path

import pytest

from serve.bundle import Bundle
from tests.serve.world import World, committed
from tests.service.models import Models
from tests.service.running import Service
from tests.watching.panels import queries, without_data
from tests.watching.prometheus import Prometheus, needs_prometheus
from tests.watching.real import TEXTS, predicting, swap, with_baseline, writing
from tests.watching.small import small_server

pytestmark = needs_prometheus

ENGINES_OWN = {
    "Answers that a member decides",
    "Disagreement",
    "Loaded adapters",
    "Loaded versions",
    "Members that agree",
    "Seconds of fusing",
    "Tokens",
}
"""Panels of metrics that the engine counts, which is faked in the small server."""


async def test_what_gateways_and_the_controller_count_has_data(
    world: World, tmp_path: Path
) -> None:
    asked = [each for each in queries() if not each.of_vllm and each.panel not in ENGINES_OWN]
    assert len(asked) > 20
    async with small_server(world, tmp_path) as small:
        committed(await world.swap(1))
        committed(await world.rollback())
        async with small.clients(2):
            await small.until(lambda: not without_data(small.prometheus, asked))


@pytest.mark.engine
@pytest.mark.slow
def test_no_panel_is_without_data(service: Service, prometheus: Prometheus, models: Models) -> None:
    intents = Bundle.open(models.bundle).ensemble("intents")
    swap(service, {"manifest": with_baseline(service, intents)})
    with predicting(service, TEXTS), writing(service, "replies/a"), writing(service, "replies"):
        prometheus.wait_for(lambda: not without_data(prometheus, queries()), 120)

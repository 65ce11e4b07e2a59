"""The queries of the dashboard, as Grafana would send them."""

import json
import math
from dataclasses import dataclass

from tests.watching.prometheus import DEPLOYMENTS, Prometheus

WINDOW = "6s"


@dataclass(frozen=True)
class Query:
    panel: str
    expression: str

    @property
    def of_vllm(self) -> bool:
        return "vllm:" in self.expression

    def has_data(self, prometheus: Prometheus) -> bool:
        """Return whether there is a number to draw."""
        return any(math.isfinite(value) for _, value in prometheus.query(self.expression))


def queries() -> list[Query]:
    dashboard = json.loads((DEPLOYMENTS / "grafana" / "dashboard.json").read_text())
    return [
        Query(panel["title"], _filled(target["expr"]))
        for panel in dashboard["panels"]
        for target in panel.get("targets", [])
    ]


def without_data(prometheus: Prometheus, asked: list[Query]) -> list[Query]:
    return [query for query in asked if not query.has_data(prometheus)]


def _filled(expression: str) -> str:
    return expression.replace("$__rate_interval", WINDOW).replace("$ensemble", ".*")

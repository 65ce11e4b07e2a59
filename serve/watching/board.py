"""The board that adds up the metrics of all processes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from serve.metrics import REGISTRY

Series: TypeAlias = tuple[str, tuple[tuple[str, str], ...]]
"""A sample's name, and its labels in order."""

_SUMMED = ("counter", "histogram", "summary")
"""The types whose samples only ever grow."""


@dataclass(frozen=True, slots=True)
class Family:
    """The samples of one metric in one process; small to send."""

    name: str
    type: str
    help: str
    samples: Mapping[Series, float]


def families(registry: CollectorRegistry = REGISTRY, prefix: str = "choir_") -> tuple[Family, ...]:
    """A snapshot of the metrics whose names start with `prefix`.

    vLLM's are `families(prometheus_client.REGISTRY, "vllm:")`."""
    return tuple(
        Family(metric.name, metric.type, metric.documentation, _samples(metric))
        for metric in registry.collect()
        if metric.name.startswith(prefix)
    )


def _samples(metric: Metric) -> dict[Series, float]:
    """Without `_created`, which says when this process began and adds up to nothing."""
    return {
        (sample.name, tuple(sample.labels.items())): sample.value
        for sample in metric.samples
        if not sample.name.endswith("_created")
    }


@dataclass(frozen=True, slots=True)
class _Live:
    incarnation: str
    families: tuple[Family, ...]


class MetricsBoard:
    """The metrics of all processes, each under the slot of its replica.

    Counters never fall. The counts of a process stay when it dies, and the next process in its slot adds to them.
    Gauges go with their process."""

    def __init__(self) -> None:
        self._live: dict[tuple[str, int], _Live] = {}
        self._past: dict[int, dict[Series, float]] = {}
        self._families: dict[str, Family] = {}
        self._owners: dict[str, str] = {}
        """A sample's name -> its family's."""
        self._told: dict[str, dict[Series, float]] = {}
        """What an incarnation that was retired had counted, should it come back."""

    def push(self, kind: str, slot: int, incarnation: str, snapshot: tuple[Family, ...]) -> None:
        """Replace what this incarnation of a process sent before."""
        for place, live in list(self._live.items()):
            replaced = place == (kind, slot) and live.incarnation != incarnation
            moved = live.incarnation == incarnation and place != (kind, slot)
            if replaced or moved:
                self._retire(place)
        self._live[kind, slot] = _Live(incarnation, snapshot)
        for family in snapshot:
            self._families.setdefault(family.name, family)
            for sample, _ in family.samples:
                self._owners[sample] = family.name

    def retire(self, incarnation: str) -> None:
        """Keep the counts of a process that is gone, and drop its gauges."""
        for place, live in list(self._live.items()):
            if live.incarnation == incarnation:
                self._retire(place)

    def render(self) -> bytes:
        """Return Prometheus text, with the label `replica` on every sample."""
        merged = {
            name: Metric(name, family.help, family.type) for name, family in self._families.items()
        }
        for slot, totals in self._totals().items():
            for (sample, labels), value in totals.items():
                family = merged[self._owners[sample]]
                family.add_sample(sample, {**dict(labels), "replica": str(slot)}, value)
        return generate_latest(_Snapshot(list(merged.values())))

    def _totals(self) -> dict[int, dict[Series, float]]:
        """By slot: what its processes counted in the past and now."""
        totals = {slot: dict(past) for slot, past in self._past.items()}
        for (_, slot), live in self._live.items():
            told = self._told.get(live.incarnation, {})
            sums = totals.setdefault(slot, {})
            for family in live.families:
                for series, value in family.samples.items():
                    sums[series] = sums.get(series, 0.0) + value - told.get(series, 0.0)
        return totals

    def _retire(self, place: tuple[str, int]) -> None:
        live = self._live.pop(place)
        past = self._past.setdefault(place[1], {})
        told = self._told.setdefault(live.incarnation, {})
        for family in live.families:
            if family.type in _SUMMED:
                for series, value in family.samples.items():
                    past[series] = past.get(series, 0.0) + value - told.get(series, 0.0)
                    told[series] = value


class _Snapshot(Collector):
    """What prometheus_client's writer reads metrics from."""

    def __init__(self, metrics: list[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> list[Metric]:
        return self._metrics

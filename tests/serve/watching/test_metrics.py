"""Metrics of many processes on one board, read back with prometheus_client's own parser."""

import contextlib
import pickle
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.parser import text_string_to_metric_families

from serve import metrics
from serve.watching import drift, replicas
from serve.watching.board import MetricsBoard, families

CONTRACT = {
    "choir_requests": ("counter", {"ensemble", "route", "status", "track"}),
    "choir_shadow_dropped": ("counter", {"ensemble"}),
    "choir_request_seconds": ("histogram", {"ensemble", "route"}),
    "choir_time_to_first_token_seconds": ("histogram", {"ensemble"}),
    "choir_member_agreement": ("counter", {"ensemble", "member", "agrees"}),
    "choir_disagreement": ("histogram", {"ensemble"}),
    "choir_member_passes": ("counter", {"ensemble", "asked"}),
    "choir_abstained": ("counter", {"ensemble", "abstained"}),
    "choir_fusion_seconds": ("histogram", {"ensemble", "method"}),
    "choir_requests_in_flight": ("gauge", {"ensemble"}),
    "choir_sequences": ("gauge", {"ensemble", "state"}),
    "choir_ensemble_info": ("gauge", {"ensemble", "version"}),
    "choir_adapter_info": ("gauge", {"adapter", "digest", "kind"}),
    "choir_active_version": ("gauge", {"ensemble"}),
    "choir_stale_fusion": ("gauge", {"ensemble"}),
    "choir_rollouts": ("counter", {"ensemble", "strategy", "outcome"}),
    "choir_rollout_phase_seconds": ("histogram", {"phase"}),
    "choir_generated_tokens": ("counter", {"ensemble"}),
    "choir_member_tokens": ("counter", {"ensemble"}),
    "choir_shared_prompt_tokens": ("counter", {"ensemble"}),
    "choir_group_stalls": ("counter", {"reason"}),
    "choir_members_absent": ("gauge", {"ensemble", "version"}),
    "choir_requests_refused": ("counter", {"reason"}),
    "choir_leases_lost": ("counter", {"kind"}),
    "choir_live_replicas": ("gauge", {"kind"}),
    "choir_load_failures": ("counter", {"ensemble"}),
    "choir_active_version_missing": ("gauge", {"ensemble"}),
    "choir_routed_version": ("gauge", {"ensemble"}),
    "choir_rollout_phase_started_seconds": ("gauge", {"ensemble", "strategy", "phase"}),
    "choir_drift_psi": ("gauge", {"ensemble", "figure"}),
    "choir_drift_answers": ("gauge", {"ensemble"}),
    "choir_member_changed_answers": ("counter", {"ensemble", "member", "changed"}),
}

Sample = tuple[str, frozenset[tuple[str, str]]]


def parse(text: bytes) -> dict[Sample, float]:
    found: dict[Sample, float] = {}
    for family in text_string_to_metric_families(text.decode()):
        for sample in family.samples:
            series = (sample.name, frozenset(sample.labels.items()))
            assert series not in found, "a series is given twice"
            found[series] = sample.value
    return found


def total(samples: dict[Sample, float], name: str, **labels: str) -> float:
    wanted = set(labels.items())
    return sum(value for (n, given), value in samples.items() if n == name and wanted <= given)


class Process:
    """A process with a counter, a histogram and a gauge of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.counter = Counter("choir_things_total", "Things.", ["a"], registry=self.registry)
        self.histogram = Histogram("choir_size", "Sizes.", buckets=(1, 2), registry=self.registry)
        self.gauge = Gauge("choir_now", "Now.", registry=self.registry)

    def push(self, board: MetricsBoard, slot: int, name: str, kind: str = "engine") -> None:
        board.push(kind, slot, name, pickle.loads(pickle.dumps(families(self.registry))))


def test_every_metric_of_the_contract_is_declared_with_its_labels() -> None:
    metrics.request_answered("intents", "/v1/predict", 200, "stable", 0.1)
    metrics.shadow_dropped("intents")
    metrics.first_token_sent("intents", 0.1)
    with metrics.request_in_flight("intents"), metrics.fusing("intents", "vote"):
        metrics.member_agreed("intents", "a", 2, 1)
    metrics.sequences("intents", 6, 3)
    metrics.disagreement_seen("intents", [0.1, 0.2])
    metrics.members_asked("intents", 5, 8)
    metrics.answers_abstained("intents", 1, 2)
    metrics.tokens_generated("intents", 3, 9)
    metrics.prompt_tokens_shared("intents", 5)
    metrics.ensemble_loaded("intents", 1)
    metrics.adapters_loaded([("x", "sha256:0", "lora")])
    metrics.version_active("intents", 1)
    metrics.fusion_stale("intents", True)
    metrics.rollout_ended("intents", "immediate", "done")
    metrics.rollout_phase_ended("preparing", 0.1)
    metrics.members_absent("intents", 1, 1)
    metrics.group_stalled("slots", 2)
    metrics.request_refused("in_flight")
    replicas.leases_held({"engine": 1})
    replicas.lease_lost("engine")
    replicas.load_failed("intents")
    replicas.active_versions_held({"intents": False})
    replicas.versions_routed({"intents": 1})
    replicas.rollouts_under_way([("intents", "canary", "canarying", 1.0)])
    drift.drift_seen("intents", 500, {"agreement": 0.1, "entropy": 0.2, "labels": 0.3})
    drift.member_changed("intents", "a", 1, 20)
    board = MetricsBoard()
    board.push("engine", 3, "one", families())

    found = {
        family.name: (
            family.type,
            {name for sample in family.samples for name in sample.labels} - {"le"},
        )
        for family in text_string_to_metric_families(board.render().decode())
    }

    expected = {name: (kind, labels | {"replica"}) for name, (kind, labels) in CONTRACT.items()}
    assert found == expected


def test_recorded_values_come_out_again() -> None:
    def read() -> dict[Sample, float]:
        board = MetricsBoard()
        board.push("gateway", 0, "one", families())
        return parse(board.render())

    before = read()
    metrics.request_answered("intents", "/v1/predict", 503, "pinned", 2.0)
    metrics.member_agreed("intents", "b", 5, 0)
    metrics.members_asked("intents", 5, 8)
    metrics.answers_abstained("intents", 1, 5)
    metrics.disagreement_seen("intents", [0.25, 0.5])
    with metrics.request_in_flight("busy"):
        after = read()

    def grown(name: str, **labels: str) -> float:
        return total(after, name, **labels) - total(before, name, **labels)

    assert grown("choir_requests_total", status="503", track="pinned") == 1
    assert grown("choir_request_seconds_sum", ensemble="intents") == pytest.approx(2.0)
    assert grown("choir_member_agreement_total", member="b", agrees="true") == 5
    assert grown("choir_disagreement_count", ensemble="intents") == 2
    assert grown("choir_member_passes_total", asked="true") == 5
    assert grown("choir_member_passes_total", asked="false") == 3
    assert grown("choir_abstained_total", abstained="true") == 1
    assert grown("choir_abstained_total", abstained="false") == 4
    assert grown("choir_disagreement_sum", ensemble="intents") == 0.75
    assert total(after, "choir_requests_in_flight", ensemble="busy") == 1
    assert total(read(), "choir_requests_in_flight", ensemble="busy") == 0


def test_what_is_unloaded_is_gone() -> None:
    def loaded() -> set[str]:
        names = ("choir_ensemble_info", "choir_adapter_info")
        return {
            value
            for family in families()
            if family.name in names
            for _, labels in family.samples
            for name, value in labels
            if name in ("version", "digest")
        }

    metrics.adapters_loaded([("x", "sha256:1", "lora"), ("y", "sha256:2", "lora")])
    metrics.ensemble_loaded("other", 41)
    assert {"sha256:1", "sha256:2", "41"} <= loaded()
    metrics.adapters_loaded([("y", "sha256:2", "lora")])
    metrics.ensemble_unloaded("other", 41)
    assert not {"sha256:1", "41"} & loaded()
    assert "sha256:2" in loaded()


def test_a_fusion_that_fails_leaves_no_label() -> None:
    with contextlib.suppress(ValueError), metrics.fusing("intents", "made up"):
        raise ValueError
    names = {value for each in families() for _, labels in each.samples for _, value in labels}
    assert "made up" not in names


def test_replicas_stand_beside_each_other_and_add_up() -> None:
    board = MetricsBoard()
    for slot in (0, 1):
        process = Process()
        process.counter.labels("x").inc(10 + slot)
        process.histogram.observe(1.5)
        process.push(board, slot, f"p{slot}")
    samples = parse(board.render())
    assert total(samples, "choir_things_total", replica="0") == 10
    assert total(samples, "choir_things_total") == 21
    assert total(samples, "choir_size_bucket", le="2.0") == 2
    assert total(samples, "choir_size_bucket", le="1.0") == 0
    assert total(samples, "choir_size_count") == 2


def test_counts_stay_and_gauges_go_when_a_process_dies() -> None:
    board = MetricsBoard()
    old = Process()
    old.counter.labels("x").inc(5)
    old.gauge.set(7)
    old.push(board, 0, "old")
    board.retire("old")
    assert total(parse(board.render()), "choir_things_total", replica="0") == 5
    assert total(parse(board.render()), "choir_now") == 0

    new = Process()
    new.counter.labels("x").inc(2)
    new.gauge.set(1)
    new.push(board, 0, "new")
    samples = parse(board.render())
    assert total(samples, "choir_things_total", replica="0") == 7
    assert total(samples, "choir_now", replica="0") == 1


def test_a_process_that_comes_back_under_another_slot_is_not_counted_twice() -> None:
    board = MetricsBoard()
    silent, other = Process(), Process()
    silent.counter.labels("x").inc(5)
    silent.push(board, 0, "silent")
    other.counter.labels("x").inc(1)
    other.push(board, 0, "other")
    silent.counter.labels("x").inc(1)
    silent.push(board, 1, "silent")
    samples = parse(board.render())
    assert total(samples, "choir_things_total", replica="0") == 6
    assert total(samples, "choir_things_total", replica="1") == 1


def test_kinds_of_processes_share_slot_numbers() -> None:
    board = MetricsBoard()
    for kind in ("engine", "gateway"):
        process = Process()
        process.counter.labels(kind).inc()
        process.push(board, 0, kind, kind)
    assert total(parse(board.render()), "choir_things_total") == 2


def test_foreign_metrics_keep_their_names_and_values_survive_odd_labels() -> None:
    registry = CollectorRegistry()
    name = 'a "quoted"\nmodel\\'
    Counter("vllm:tokens_total", "Tokens.", ["model_name"], registry=registry).labels(name).inc(3)
    Gauge("other", "Not asked for.", registry=registry).set(1)
    board = MetricsBoard()
    board.push("engine", 2, "one", families(registry, "vllm:"))
    samples = parse(board.render())
    assert samples == {
        ("vllm:tokens_total", frozenset({("model_name", name), ("replica", "2")})): 3
    }


Event = tuple[int, int, int]


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2), st.integers(0, 5)), max_size=40),
    st.sets(st.integers(0, 39)),
)
def test_sums_are_exact_and_never_fall(events: list[Event], deaths: set[int]) -> None:
    """Whichever process pushes under whichever slot, the sum is what all have counted so far."""
    board = MetricsBoard()
    processes = [Process() for _ in range(4)]
    told = [0, 0, 0, 0]
    for turn, (number, slot, more) in enumerate(events):
        processes[number].counter.labels("x").inc(more)
        processes[number].histogram.observe(1)
        told[number] += more
        processes[number].push(board, slot, f"p{number}")
        if turn in deaths:
            board.retire(f"p{number}")
        samples = parse(board.render())
        assert total(samples, "choir_things_total") == sum(told)
        assert total(samples, "choir_size_count") == turn + 1


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    """Gauges of this process are shared by all tests."""
    yield
    metrics.adapters_loaded([])

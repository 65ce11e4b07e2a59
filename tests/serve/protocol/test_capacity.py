"""What fits into an engine, by the names of its adapters."""

from collections.abc import Callable
from pathlib import Path

import pytest

from serve.manifest import AdapterRef, Ensemble, FusionSpec, Member
from serve.protocol.capacity import Capacity, CapacityPlan
from tests.serve.fakes import make_adapter, make_prompt_adapter

Plan = Callable[..., CapacityPlan]


def digest(adapter: str) -> str:
    return "sha256:" + adapter.encode().hex().zfill(64)


def ensemble(name: str, adapters: str, version: int = 1) -> Ensemble:
    """One member for each letter: an adapter of that name."""
    return Ensemble(
        format=1,
        name=name,
        version=version,
        task="classification",
        members=[
            Member(name=f"m-{each}", adapters=[AdapterRef(adapter=each, digest=digest(each))])
            for each in adapters
        ],
        fusion=FusionSpec(method="average"),
        labels=["yes", "no"],
    )


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    """Adapters are LoRAs, except `p` and `q`."""
    for number, name in enumerate("abcdefgpq"):
        make = make_prompt_adapter if name in "pq" else make_adapter
        make(tmp_path / digest(name).removeprefix("sha256:"), number)

    def made(slots: int, host: int | None = None, pinned: str | None = None) -> CapacityPlan:
        names = None if pinned is None else frozenset(pinned.split())
        folder = lambda digest: tmp_path / digest.removeprefix("sha256:")  # noqa: E731
        return CapacityPlan(Capacity(slots, host), folder, names)

    return made


def test_an_adapter_of_two_ensembles_takes_one_place(plan: Plan) -> None:
    active = [ensemble("x", "ab"), ensemble("y", "bc")]
    assert plan(3).no_room_to_start(active) is None
    assert "have 3 distinct LoRAs, and an engine has 2 slots" in str(
        plan(2).no_room_to_start(active)
    )


def test_soft_adapters_take_no_place(plan: Plan) -> None:
    active = [ensemble("x", "apq")]
    assert plan(1).no_room_to_start(active) is None
    assert plan(2).no_room_for(ensemble("x", "bp", 2), active, []) is None


def test_more_adapters_are_loaded_than_run_but_one_version_has_to_run(plan: Plan) -> None:
    active = [ensemble("x", "ab"), ensemble("y", "cd")]
    assert "slots" in str(plan(2).no_room_to_start(active))
    assert plan(2, 4).no_room_to_start(active) is None
    message = plan(2, 9).no_room_for(ensemble("x", "efg", 2), active, [])
    assert "3 distinct LoRAs, and the engine runs 2 at once" in str(message)


def test_the_largest_ensemble_on_demand_keeps_room(plan: Plan) -> None:
    active = [ensemble("x", "a"), ensemble("y", "bc"), ensemble("z", "d")]
    candidate = ensemble("x", "e", 2)
    assert plan(4, pinned="x").no_room_for(candidate, active, []) is None
    message = plan(3, pinned="x").no_room_for(candidate, active, [])
    assert "occupied by x@1 (1) and ensembles on demand (2)" in str(message)


def test_candidates_of_two_rollouts_share_the_room(plan: Plan) -> None:
    active = [ensemble("x", "a"), ensemble("y", "b")]
    candidate, other = ensemble("x", "c", 2), ensemble("y", "d", 2)
    assert plan(3).no_room_for(candidate, active, []) is None
    message = plan(3).no_room_for(candidate, active, [other])
    assert "would hold 4" in str(message)
    assert "x@1 (1), y@1 (1), y@2 (1)" in str(message)


def test_the_latest_versions_stay_warm_as_far_as_they_fit(plan: Plan) -> None:
    active, recent = [ensemble("x", "a", 4)], [ensemble("x", "bc", 3), ensemble("x", "ad", 2)]
    assert plan(3).warm(recent, active, [], ()) == recent[:1]
    assert plan(2).warm(recent, active, [], ()) == recent[1:]  # the first one does not fit
    assert plan(4).warm(recent, active, [], ()) == recent
    assert plan(3).warm(recent, active, [ensemble("x", "e", 5)], ()) == recent[1:]


def test_a_compared_ensemble_on_demand_leaves_less_room_for_warm_versions(plan: Plan) -> None:
    active = [ensemble("x", "a", 2), ensemble("y", "b"), ensemble("z", "e")]
    recent, candidate = [ensemble("x", "c")], ensemble("y", "d", 2)
    assert plan(4, pinned="x").warm(recent, active, [candidate], ()) == recent
    assert plan(4, pinned="x").warm(recent, active, [candidate], {"y"}) == []

"""Leases and ordinals."""

from serve.control.participants import Participants
from serve.protocol.messages import ParticipantKind, StatusReport

LEASE = 9.0


def report(
    name: str, kind: ParticipantKind = "engine", sequence: int = 1, **more: bool
) -> StatusReport:
    return StatusReport(name, kind, sequence, 0, **{"ready": True, **more})


def slots(participants: Participants) -> dict[str, int]:
    return {each.report.participant: each.ordinal for each in participants.live()}


def test_ordinals_are_the_lowest_free_numbers_of_each_kind() -> None:
    participants = Participants(LEASE, {"engine": 2, "gateway": 1})
    for name in ("a", "b"):
        participants.hear(report(name), 0)
    participants.hear(report("g", "gateway"), 0)
    assert slots(participants) == {"a": 0, "b": 1, "g": 0}


def test_a_restarted_replica_takes_over_the_ordinal_of_one_whose_lease_ran_out() -> None:
    participants = Participants(LEASE, {"engine": 2})
    participants.hear(report("a"), 0)
    participants.hear(report("b"), LEASE - 1)
    assert participants.expire(LEASE) == ["a"]
    participants.hear(report("c"), LEASE)
    assert slots(participants) == {"c": 0, "b": 1}


def test_a_replica_that_restarts_within_the_lease_takes_over_the_ordinal_of_the_silent_one() -> (
    None
):
    participants = Participants(LEASE, {"engine": 2})
    participants.hear(report("a"), 0)
    participants.hear(report("b"), 0)
    participants.hear(report("b", sequence=2), 5)
    participants.hear(report("c"), 5)
    assert slots(participants) == {"c": 0, "b": 1, "a": 2}


def test_more_replicas_than_expected_get_their_own_ordinals() -> None:
    participants = Participants(LEASE, {"engine": 1})
    participants.hear(report("a"), 0)
    participants.hear(report("b"), 1)
    assert slots(participants) == {"a": 0, "b": 1}


def test_a_participant_that_leaves_frees_its_ordinal_at_once() -> None:
    participants = Participants(LEASE, {"engine": 1})
    participants.hear(report("a"), 0)
    assert participants.hear(report("a", sequence=2, leaving=True), 1) is None
    participants.hear(report("b"), 1)
    assert slots(participants) == {"b": 0}


def test_a_report_that_arrives_after_a_later_one_changes_and_renews_nothing() -> None:
    participants = Participants(LEASE, {})
    participants.hear(report("a", sequence=2), 0)
    participants.hear(report("a", sequence=1, ready=False), 5)
    assert participants.ready_engines("") == 1
    assert participants.expire(LEASE) == ["a"]


def test_the_next_expiry_is_exactly_when_a_lease_ends() -> None:
    participants = Participants(0.1, {})
    participants.hear(report("a"), 0.7)
    at = participants.next_expiry()
    assert at is not None
    assert participants.expire(at) == ["a"]
    assert participants.next_expiry() is None

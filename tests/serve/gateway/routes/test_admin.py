"""The routes of ensembles, swaps, rollbacks and rollouts, with a faked controller."""

from typing import Any

import pytest

from serve.errors import Refusal
from serve.gateway.links import Unavailable
from serve.protocol.pruning import PruneRequest
from serve.protocol.requests import SwapRequest
from serve.protocol.views import EnsembleView
from tests.serve.gateway.conftest import Gateway, Start, refused
from tests.serve.gateway.fakes import PRUNED

SWAP, ROLLBACK = "/v1/ensembles/intents/swap", "/v1/ensembles/intents/rollback"
ROLLOUT_BODY = {
    "id": "r1",
    "ensemble": "intents",
    "state": "done",
    "from": 2,
    "to": 3,
    "strategy": "immediate",
    "trial": None,
    "action": "swap",
    "actor": "admin",
    "uris": {},
    "replicas": {"engine/0": "prepared"},
    "reason": None,
    "created": "2026-01-01T00:00:00Z",
    "updated": "2026-01-01T00:00:01Z",
}

EMPTY_ENSEMBLE = {
    "active_version": 1,
    "pool": "intents",
    "task": "classification",
    "fusion": "average",
    "labels": ["yes", "no"],
    "members": [],
    "digests": [],
    "stale_fusion": False,
    "fusion_fit": {"state": "none", "parts": [], "stale_members": []},
    "pinned": True,
    "versions": [],
    "version_count": 1,
    "previous": [],
    "rollout": None,
    "differences": [],
}


@pytest.mark.parametrize(
    ("query", "wait", "status"),
    [
        ("", False, 202),
        ("?wait=false", False, 202),
        ("?wait=true", True, 200),
        ("?wait=1", True, 200),
    ],
)
async def test_swap(gateway: Gateway, query: str, wait: bool, status: int) -> None:
    body = {"members": {"a": "file:///new"}, "expected_version": 3, "allow_stale_fusion": True}
    response = await gateway.http.post(SWAP + query, json=body)
    assert (response.status_code, response.json()) == (status, ROLLOUT_BODY)
    request = SwapRequest(members={"a": "file:///new"}, expected_version=3, allow_stale_fusion=True)
    assert gateway.control.asked == [("swap", "intents", request, "no token, from 127.0.0.1", wait)]


async def test_prune_shows_what_would_go_unless_it_is_told_to_remove(gateway: Gateway) -> None:
    for body, request in (
        ({}, PruneRequest(dry_run=True)),
        (
            {"dry_run": False, "keep_versions": 3, "keep_days": 1},
            PruneRequest(dry_run=False, keep_versions=3, keep_days=1),
        ),
    ):
        response = await gateway.http.post("/v1/prune", json=body)
        assert (response.status_code, response.json()) == (200, PRUNED.model_dump(mode="json"))
        assert gateway.control.asked[-1] == ("prune", request, "no token, from 127.0.0.1")


@pytest.mark.parametrize(
    "body",
    [
        {"keep_versions": 0},
        {"keep_versions": 1.5},
        {"keep_days": -1},
        {"dry_run": "no"},
        {"all": 1},
    ],
)
async def test_a_prune_with_an_unsound_body_is_refused(
    gateway: Gateway, body: dict[str, Any]
) -> None:
    response = await gateway.http.post("/v1/prune", json=body)
    assert refused(response, 400)
    assert gateway.control.asked == []


async def test_a_prune_needs_an_admin(start: Start) -> None:
    gateway = await start(admin_token="secret")
    assert refused(await gateway.http.post("/v1/prune", json={}), 401)
    assert gateway.control.asked == []


async def test_ensembles_are_listed_in_pages(gateway: Gateway) -> None:
    gateway.control.listed = [
        EnsembleView.model_validate(EMPTY_ENSEMBLE | {"name": name}) for name in "abcde"
    ]

    async def listed(query: str) -> dict[str, Any]:
        response = await gateway.http.get(f"/v1/ensembles{query}")
        assert response.status_code == 200
        answer: dict[str, Any] = response.json()
        assert answer.pop("object") == "list"
        return answer | {"data": [each["name"] for each in answer["data"]]}

    everything = {"data": [*"abcde"], "first_id": "a", "last_id": "e", "has_more": False}
    assert await listed("") == await listed("?limit=5") == everything
    first = {"data": ["a", "b"], "first_id": "a", "last_id": "b", "has_more": True}
    assert await listed("?limit=2") == first
    assert (await listed("?limit=2&after=b"))["data"] == ["c", "d"]
    assert (await listed("?limit=2&after=d"))["has_more"] is False
    assert await listed("?after=e") == {"data": [], "has_more": False}
    # The one that a page ended with may be gone when the next page is asked for.
    assert (await listed("?after=bb"))["data"] == ["c", "d", "e"]


@pytest.mark.parametrize("query", ["limit=0", "limit=1001", "limit=x", f"after={'a' * 64}"])
async def test_unsound_pages_are_refused(gateway: Gateway, query: str) -> None:
    assert refused(await gateway.http.get(f"/v1/ensembles?{query}"), 400)


@pytest.mark.parametrize("name", ["a.b", "a-b_c", "0"])
async def test_names_may_hold_dots_and_dashes(gateway: Gateway, name: str) -> None:
    await gateway.http.post(f"/v1/ensembles/{name}/swap", json={"version": 2})
    await gateway.http.get(f"/v1/ensembles/{name}")
    assert [asked[1] for asked in gateway.control.asked] == [name, name]


@pytest.mark.parametrize(
    ("body", "to", "query", "status"),
    [({}, None, "", 202), ({"to": 2}, 2, "?wait=true", 200), ({"to": None}, None, "", 202)],
)
async def test_rollback(
    gateway: Gateway, body: dict[str, Any], to: int | None, query: str, status: int
) -> None:
    response = await gateway.http.post(ROLLBACK + query, json=body)
    assert (response.status_code, response.json()) == (status, ROLLOUT_BODY)
    wait = status == 200
    assert gateway.control.asked == [("rollback", "intents", to, "no token, from 127.0.0.1", wait)]


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        (SWAP, {}, "members"),
        (SWAP, {"members": {}}, "members"),
        (SWAP, {"members": {"a": 1}}, "members"),
        (SWAP, {"members": {"a": "file:///x"}, "version": 2}, "exactly one"),
        (SWAP, {"version": "2"}, "version"),
        (SWAP, {"version": 2, "colour": 1}, "colour"),
        (ROLLBACK, {"to": "2"}, "to"),
        (ROLLBACK, {"to": 0}, "to"),
        (ROLLBACK, {"too": 2}, "too"),
    ],
)
async def test_an_error_names_the_wrong_field(
    gateway: Gateway, path: str, body: dict[str, Any], words: str
) -> None:
    refused(await gateway.http.post(path, json=body), 400, words)
    assert gateway.control.asked == []


@pytest.mark.parametrize("path", [SWAP, ROLLBACK])
async def test_a_refusal_of_the_controller_reaches_the_client(gateway: Gateway, path: str) -> None:
    gateway.control.refusal = Refusal(409, "Version 3 is active.", code="version_conflict")
    body = {"version": 2} if path == SWAP else {}
    error = refused(await gateway.http.post(f"{path}?wait=true", json=body), 409, "3 is active")
    assert (error["type"], error["code"]) == ("conflict_error", "version_conflict")


async def test_without_a_controller_swaps_fail_and_predictions_go_on(gateway: Gateway) -> None:
    gateway.control.error = Unavailable("The controller is away.")
    refused(await gateway.http.post(SWAP, json={"version": 2}), 503, "controller")
    for path in ("/v1/ensembles", "/v1/ensembles/intents", "/v1/rollouts", "/metrics"):
        refused(await gateway.http.get(path), 503, "controller")
    assert (await gateway.predict()).status_code == 200
    assert (await gateway.http.get("/ready")).status_code == 200


async def test_rollouts(gateway: Gateway) -> None:
    listed = (await gateway.http.get("/v1/rollouts")).json()
    assert (listed["object"], listed["data"]) == ("list", [ROLLOUT_BODY])
    (entry,) = listed["audit"]
    assert (entry["actor"], entry["from"], entry["to"]) == ("eve, from 127.0.0.1", 3, None)
    assert (entry["outcome"], entry["reason"]) == ("refused", "no room")
    assert (await gateway.http.get("/v1/rollouts/r1")).json() == ROLLOUT_BODY
    gateway.control.refusal = Refusal(404, "There is no rollout 'r2'.")
    refused(await gateway.http.get("/v1/rollouts/r2"), 404, "r2")
    gateway.control.refusal = Refusal(503, "The database failed: disk full.", "database")
    refused(await gateway.http.get("/v1/rollouts"), 503, "disk full")


async def test_an_unknown_ensemble(gateway: Gateway) -> None:
    refused(await gateway.http.get("/v1/ensembles/nobody"), 404, "nobody")


@pytest.mark.parametrize(("query", "wait", "status"), [("", False, 202), ("?wait=true", True, 200)])
async def test_promote(gateway: Gateway, query: str, wait: bool, status: int) -> None:
    response = await gateway.http.post(f"/v1/rollouts/r1/promote{query}", json={})
    assert (response.status_code, response.json()) == (status, ROLLOUT_BODY)
    assert gateway.control.asked == [("promote", "r1", "no token, from 127.0.0.1", wait)]


@pytest.mark.parametrize("what", ["promote", "abort"])
async def test_promote_and_abort_take_no_fields(gateway: Gateway, what: str) -> None:
    path = f"/v1/rollouts/r1/{what}"
    refused(await gateway.http.post(path, json={"wait": True}), 400, "no fields")
    assert gateway.control.asked == []
    empty = await gateway.http.post(path, headers={"content-type": "application/json"})
    assert empty.is_success


async def test_abort(gateway: Gateway) -> None:
    response = await gateway.http.post("/v1/rollouts/r1/abort", json={})
    assert (response.status_code, response.json()) == (200, ROLLOUT_BODY)
    assert gateway.control.asked == [("abort", "r1", "no token, from 127.0.0.1")]


@pytest.mark.parametrize("what", ["promote", "abort"])
async def test_a_rollout_that_cannot_be_promoted_or_aborted(gateway: Gateway, what: str) -> None:
    gateway.control.refusal = Refusal(409, f"There is nothing to {what}.")
    response = await gateway.http.post(f"/v1/rollouts/r1/{what}", json={})
    refused(response, 409, f"nothing to {what}")


async def test_the_audit_gets_the_name_of_the_caller(start: Start) -> None:
    gateway = await start(admin_token="boss")
    await gateway.http.post(ROLLBACK, json={}, headers={"authorization": "Bearer boss"})
    assert gateway.control.asked == [
        ("rollback", "intents", None, "admin token, from 127.0.0.1", False)
    ]

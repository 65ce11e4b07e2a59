"""`choir prune`: what it sends, and what it prints."""

import json
from typing import Any

from tests.clients.choir_cli.conftest import DIGEST, Choir
from tests.clients.conftest import LocalServer

FOUND: dict[str, Any] = {
    "dry_run": True,
    "versions": [{"ensemble": "intents", "version": 1, "created": "2026-01-01T00:00:00.000Z"}],
    "adapters": [{"digest": DIGEST, "bytes": 2_500_000}],
    "parameters": [],
    "waiting": ["tone"],
}


def test_it_shows_what_would_go_and_removes_nothing(
    choir: Choir, local_server: LocalServer
) -> None:
    local_server.answers["POST /v1/prune"] = (200, FOUND)

    ran = choir("prune", "--keep-versions", "5", "--keep-days", "7")

    assert local_server.bodies == [{"keep_versions": 5, "keep_days": 7.0, "dry_run": True}]
    assert ran.out.splitlines() == [
        "intents@1, of 2026-01-01",
        "tone: a rollout is under way, so all its versions stay for now",
        "To go: 1 version, 1 adapter and 0 files of fitted parameters, 2.5 MB. Nothing is removed yet; add --yes to "
        "remove it.",
    ]


def test_with_yes_it_removes(choir: Choir, local_server: LocalServer) -> None:
    local_server.answers["POST /v1/prune"] = (200, {**FOUND, "dry_run": False})

    ran = choir("prune", "--yes")

    assert local_server.bodies == [{"dry_run": False}]
    assert ran.out.splitlines()[-1].startswith("Removed: 1 version, 1 adapter and 0 files")


def test_nothing_can_go(choir: Choir, local_server: LocalServer) -> None:
    empty = {"dry_run": True, "versions": [], "adapters": [], "parameters": [], "waiting": []}
    local_server.answers["POST /v1/prune"] = (200, empty)

    assert choir("prune").out == "Nothing can go.\n"
    assert json.loads(choir("prune", "--json").out) == empty

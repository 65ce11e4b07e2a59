"""`choir status`, `swap`, `rollback`, `rollouts`, `promote` and `abort`: what they send and print."""

import json
import re
from pathlib import Path

import pytest

from serve.protocol.strategy import MAX_ERROR_RATE, MAX_SECONDS, MIN_REQUESTS, SHARE
from tests.clients.choir_cli.conftest import DIGEST, ENSEMBLE, ROLLOUT, Choir
from tests.clients.conftest import LocalServer

AUDIT = {
    "at": "2026-01-01T00:00:00Z",
    "actor": "eve",
    "action": "swap",
    "ensemble": "intents",
    "from": 3,
    "to": None,
    "outcome": "refused",
    "reason": "no room",
}


def test_help_names_the_defaults_of_the_gates(choir: Choir) -> None:
    text = " ".join(choir("swap", "--help").out.split())
    defaults = {
        "share": SHARE,
        "min-requests": MIN_REQUESTS,
        "max-error-rate": MAX_ERROR_RATE,
        "max-seconds": int(MAX_SECONDS),
    }
    for name, default in defaults.items():
        assert re.search(rf"--{name} .*?\[default: \({default}\b", text), name


class TestOperations:
    def test_status(self, choir: Choir, local_server: LocalServer) -> None:
        local_server.answers["GET /ready"] = (503, {"error": {"message": "engines start"}})
        local_server.answers["GET /v1/ensembles"] = (200, {"data": [ENSEMBLE]})
        local_server.answers["GET /version"] = (200, {"choir": "9.8.7"})
        ran = choir("status")
        assert ran.status == 0
        assert f"{local_server.url}: not ready, Choir 9.8.7\n" in ran.out
        for shown in ("intents", "3", "1, 3", "intents-a", "ab" * 6, "with the bundle"):
            assert shown in ran.out

    def test_status_says_who_swapped_an_adapter_in_from_where_and_when(
        self, choir: Choir, local_server: LocalServer
    ) -> None:
        swapped = {"uri": "s3://team/a", "swapped_by": "ann, from 10.0.0.5"}
        at = "2026-11-29T16:10:02.123+00:00"
        adapter = {"adapter": "intents-a", "digest": DIGEST, **swapped, "swapped_at": at}
        members = [{"name": "a", "adapters": [adapter]}, {"name": "b", "adapters": []}]
        local_server.answers["GET /ready"] = (200, {})
        local_server.answers["GET /v1/ensembles"] = (
            200,
            {"data": [ENSEMBLE | {"members": members}]},
        )
        ran = choir("status")
        [line] = [each for each in ran.out.splitlines() if "intents-a" in each]
        assert re.split(r" {2,}", line) == [
            *("intents", "a", "intents-a", "ab" * 6),
            *("2026-11-29T16:10:02Z by ann, from 10.0.0.5", "s3://team/a"),
        ]
        assert "the base alone" in ran.out

    def test_status_prints_the_command_that_serves_what_the_start_has_brought(
        self, choir: Choir, local_server: LocalServer
    ) -> None:
        local_server.answers["GET /ready"] = (200, {})
        local_server.answers["GET /v1/ensembles"] = (
            200,
            {"data": [ENSEMBLE | {"bring_in": "choir swap intents --version 4"}]},
        )
        command = f"  choir swap intents --version 4 --url {local_server.url}\n"
        assert command in choir("status").out

    def test_status_shows_differences_and_a_stale_fusion(
        self, choir: Choir, local_server: LocalServer
    ) -> None:
        odd = {
            **ENSEMBLE,
            "differences": ["a newer version lies in the bundle"],
            "stale_fusion": True,
        }
        local_server.answers["GET /ready"] = (200, {})
        local_server.answers["GET /v1/ensembles"] = (200, {"data": [odd]})
        ran = choir("status")
        assert "intents: a newer version lies in the bundle\n" in ran.out
        assert "intents: the fusion was fitted on other adapters" in ran.out

    def test_status_shows_a_fusion_that_was_fitted_again(
        self, choir: Choir, local_server: LocalServer
    ) -> None:
        fit = {"state": "refitted", "parts": ["temperature"], "stale_members": []}
        local_server.answers["GET /ready"] = (200, {})
        local_server.answers["GET /v1/ensembles"] = (
            200,
            {"data": [{**ENSEMBLE, "fusion_fit": fit}]},
        )
        assert (
            "intents: the fusion was fitted again for the active adapters\n" in choir("status").out
        )

    @pytest.mark.parametrize(
        ("loaded_on", "says"),
        [(["engine/0", "engine/2"], "now on engine/0, engine/2"), ([], "on no engine now")],
    )
    def test_status_shows_where_an_on_demand_ensemble_is_loaded(
        self, choir: Choir, local_server: LocalServer, loaded_on: list[str], says: str
    ) -> None:
        versions = [{"version": 1}, {"version": 3, "loaded_on": loaded_on}]
        local_server.answers["GET /ready"] = (200, {})
        local_server.answers["GET /v1/ensembles"] = (
            200,
            {"data": [{**ENSEMBLE, "pinned": False, "versions": versions}]},
        )
        assert f"intents: loaded on demand, {says}\n" in choir("status").out

    def test_status_counts_the_versions_that_it_leaves_out(
        self, choir: Choir, local_server: LocalServer
    ) -> None:
        local_server.answers["GET /ready"] = (200, {})
        local_server.answers["GET /v1/ensembles"] = (
            200,
            {"data": [{**ENSEMBLE, "version_count": 9000}]},
        )
        assert "1, 3 (8998 more)" in " ".join(choir("status").out.split())

    def test_swap_sends_the_contract(self, choir: Choir, local_server: LocalServer) -> None:
        local_server.answers["POST /v1/ensembles/intents/swap"] = (200, ROLLOUT)
        ran = choir("swap", "intents", "a=file:///data/a", "--expected-version", "3")
        assert ran.out == "intents: version 3 -> 4, done (rollout r1)\n"
        assert local_server.paths == ["POST /v1/ensembles/intents/swap?wait=true"]
        assert local_server.bodies == [
            {"members": {"a": ["file:///data/a"]}, "expected_version": 3}
        ]

    def test_swap_sends_a_manifest(
        self, choir: Choir, local_server: LocalServer, tmp_path: Path
    ) -> None:
        local_server.answers["POST /v1/ensembles/intents/swap"] = (200, ROLLOUT)
        file = tmp_path / "manifest.json"
        file.write_text('{"task": "classification"}')
        assert choir("swap", "intents", "--manifest", str(file)).status == 0
        assert local_server.bodies == [{"manifest": {"task": "classification"}}]
        assert choir("swap", "intents", "--manifest", str(file), "--version", "2").status == 2
        file.write_text("[]")
        assert "takes a JSON object" in choir("swap", "intents", "--manifest", str(file)).err

    def test_a_canary_is_followed_to_its_end(self, choir: Choir, local_server: LocalServer) -> None:
        counts = {"requests": 100, "errors": 0, "mean_ms": 41.2}
        trial = {"share": 0.1, "candidate": counts, "stable": counts, "agreement": 0.98}
        local_server.answers["POST /v1/ensembles/intents/swap"] = (
            202,
            {**ROLLOUT, "state": "preparing"},
        )
        local_server.answers["GET /v1/rollouts/r1"] = (200, {**ROLLOUT, "trial": trial})
        ran = choir(
            *("swap", "intents", "--version", "4", "--strategy", "canary", "--share", "0.1"),
            *("--min-requests", "100", "--max-error-rate", "0.02", "--min-agreement", "0.9"),
        )
        assert local_server.paths[0] == "POST /v1/ensembles/intents/swap"
        assert local_server.bodies[0]["strategy"] == {
            "kind": "canary",
            "share": 0.1,
            "gates": {"min_requests": 100, "max_error_rate": 0.02, "min_agreement": 0.9},
        }
        assert ran.status == 0
        assert ran.out.splitlines()[:3] == [
            "intents: version 3 -> 4, preparing (rollout r1)",
            "preparing: 0 s",
            "intents: version 3 -> 4, done (rollout r1)",
        ]
        assert "100 requests, 0 errors, 41 ms" in ran.out
        assert "98.0%" in ran.out

    @pytest.mark.parametrize("command", ["swap", "status", "rollouts"])
    def test_a_committed_swap_reads_as_live_while_the_old_version_drains(
        self, choir: Choir, local_server: LocalServer, command: str
    ) -> None:
        draining = {**ROLLOUT, "state": "draining"}
        local_server.answers["POST /v1/ensembles/intents/swap"] = (200, draining)
        local_server.answers["GET /ready"] = (200, {})
        local_server.answers["GET /v1/ensembles"] = (
            200,
            {"data": [ENSEMBLE | {"rollout": draining}]},
        )
        local_server.answers["GET /v1/rollouts"] = (200, {"data": [draining]})
        more = ("intents", "--version", "4") if command == "swap" else ()
        assert "live, old version draining" in choir(command, *more).out

    def test_promote_and_abort(self, choir: Choir, local_server: LocalServer) -> None:
        local_server.answers["POST /v1/rollouts/r1/promote"] = (200, ROLLOUT)
        local_server.answers["POST /v1/rollouts/r1/abort"] = (200, {**ROLLOUT, "state": "aborted"})
        assert "version 3 -> 4, done" in choir("promote", "r1").out
        aborted = choir("abort", "r1")
        assert (aborted.status, aborted.out) == (0, "intents: version 3 stays (rollout r1)\n")
        assert local_server.paths == [
            "POST /v1/rollouts/r1/promote?wait=true",
            "POST /v1/rollouts/r1/abort",
        ]

    def test_an_aborted_rollout_ends_with_status_1(
        self, choir: Choir, local_server: LocalServer
    ) -> None:
        aborted = {**ROLLOUT, "state": "aborted", "reason": "the adapter changes nothing"}
        local_server.answers["POST /v1/ensembles/intents/rollback"] = (202, aborted)
        ran = choir("rollback", "intents", "--to", "2", "--no-wait")
        assert ran.status == 1
        assert "the adapter changes nothing" in ran.out
        assert local_server.paths == ["POST /v1/ensembles/intents/rollback"]
        assert local_server.bodies == [{"to": 2}]

    def test_rollouts(self, choir: Choir, local_server: LocalServer) -> None:
        local_server.answers["GET /v1/rollouts"] = (200, {"data": [ROLLOUT]})
        ran = choir("rollouts")
        for shown in ("r1", "intents", "done"):
            assert shown in ran.out
        assert json.loads(choir("rollouts", "--json").out) == [ROLLOUT]

    def test_the_audit_lists_refused_changes_too(
        self, choir: Choir, local_server: LocalServer
    ) -> None:
        answer = {"data": [ROLLOUT], "audit": [AUDIT]}
        local_server.answers["GET /v1/rollouts"] = (200, answer)
        ran = choir("rollouts", "--audit")
        for shown in ("eve", "swap", "refused", "no room"):
            assert shown in ran.out
        assert json.loads(choir("rollouts", "--audit", "--json").out) == [AUDIT]

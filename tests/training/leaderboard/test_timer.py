"""Requests that the leaderboard measures in an engine of its own, and the commands around it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from choir_cli.leaderboard.timer import EngineTimer
from choir_cli.main import app
from serve.bundle import BaseSpec, Bundle
from training.leaderboard.board import Leaderboard
from training.leaderboard.rungs import rung_file
from training.leaderboard.timing import Input


@pytest.mark.slow
def test_an_engine_that_cannot_start_costs_the_times_and_not_the_board(tmp_path: Path) -> None:
    base = {"kind": "encoder", "id": "nobody/nothing", "revision": "main"}
    bundle = Bundle.create(tmp_path, BaseSpec.model_validate(base))
    file = tmp_path / "ensembles" / "topics" / "1.json"
    file.parent.mkdir(parents=True)
    manifest = {
        "format": 1,
        "name": "topics",
        "version": 1,
        "task": "regression",
        "members": [{"name": "a", "adapters": []}],
        "fusion": {"method": "average"},
    }
    file.write_text(json.dumps(manifest))
    with EngineTimer(bundle, "topics") as timer:
        times = timer.milliseconds(bundle, {"average": bundle.ensemble("topics")}, [Input("a")])
    assert times == {}
    assert timer.problem is not None
    assert timer.problem.startswith("Requests were not measured: ")


@pytest.mark.slow
@pytest.mark.parametrize("task", ["topics", "replies"])
def test_choir_leaderboard_measures_every_rung_and_says_how_to_serve_one(
    causal_bundle: Bundle, tmp_path: Path, task: str
) -> None:
    merged = CliRunner().invoke(
        app, ["merge", str(causal_bundle.path), "--ensemble", task, "--method", "cat"]
    )
    assert merged.exit_code == 0, merged.output
    out = tmp_path / "board.json"
    args = ["leaderboard", str(causal_bundle.path), "--ensemble", task, "--json", str(out)]
    ran = CliRunner().invoke(app, args)
    assert ran.exit_code == 0, ran.output
    board = Leaderboard.model_validate_json(out.read_bytes())
    times = {rung.name: rung.milliseconds for rung in board.rungs}
    assert all(time is not None and time > 0 for time in times.values()), times
    assert "merged-cat" in times
    file = rung_file(causal_bundle, task, board.recommended)
    assert f"choir swap {task} --manifest {file}" in ran.output
    assert file.is_file()


def test_no_timing_starts_no_engine(
    encoder_bundle: Bundle, monkeypatch: pytest.MonkeyPatch, write_recipe: Callable[..., Path]
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("an engine was started")

    monkeypatch.setattr("choir_cli.leaderboard.timer.subprocess.Popen", refuse)
    args = ["leaderboard", str(encoder_bundle.path), "--ensemble", "topics", "--no-timing"]
    ran = CliRunner().invoke(app, args, catch_exceptions=False)
    assert ran.exit_code == 0
    assert "Serve " in ran.output
    page = (encoder_bundle.path / "report" / "index.html").read_text()
    assert "Quality against cost" in page

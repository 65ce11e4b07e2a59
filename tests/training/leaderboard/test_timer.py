"""Requests that the leaderboard measures in an engine of its own, and the commands around it."""

import json
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from choir_cli.leaderboard.engine import _ask, _medians
from choir_cli.leaderboard.timer import EngineTimer
from choir_cli.main import app
from serve.bundle import BaseSpec, Bundle
from serve.engine.interface import GenerateCall, PredictCall
from serve.errors import RefusedError
from serve.images.decode import decode
from serve.images.limits import ImageLimits
from serve.manifest import Ensemble
from tests.serve import seeing
from tests.serve.images.hostile import picture, url_of
from tests.serve.manifests import manifest
from training.leaderboard.board import Leaderboard
from training.leaderboard.rungs import rung_file
from training.leaderboard.timing import Input

PHOTO = url_of(picture(40, 24), "JPEG")
INPUTS = [Input(PHOTO), Input(f"{PHOTO}\nIt came\nthis morning."), Input("where is it?")]
"""An image, an image with a text, and a text."""


class Asked:
    """An engine that notes what it is asked."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    async def predict(self, call: PredictCall) -> None:
        self.calls.append(call)

    async def generate(self, call: GenerateCall) -> AsyncIterator[bytes]:
        self.calls.append(call)
        yield b"{}"


async def asked(ensemble: Ensemble) -> list[Any]:
    """What the engine is asked in six turns over the three inputs."""
    engine: Any = Asked()
    ask = _ask(engine, ensemble, [asdict(each) for each in INPUTS])
    for turn in range(6):
        await ask(turn)
    return list(engine.calls)


def look(url: str) -> bytes:
    assert url.startswith("data:image/jpeg;")
    return decode(url, ImageLimits()).tobytes()


async def test_each_image_is_asked_about_with_its_text_and_as_one_of_its_own() -> None:
    calls = await asked(Ensemble.model_validate(manifest()))
    given = [call.inputs[0] for call in calls]
    assert [each.text for each in given[:2]] == ["", "It came\nthis morning."]
    assert [(each.text, each.image) for each in (given[2], given[5])] == [
        ("2 where is it?", None),
        ("5 where is it?", None),
    ]
    seen = [look(each.image) for each in given if each.image is not None]
    assert len({look(PHOTO), *seen}) == 5


async def test_an_image_is_written_about_in_a_chat_and_a_text_completed() -> None:
    fields = {"task": "generation", "labels": None, "template": "Q: {text}"}
    calls = await asked(Ensemble.model_validate(manifest(**fields)))
    assert [call.route for call in calls] == ["chat", "chat", "completions"] * 2
    assert calls[2].body["prompt"] == "Q: 2 where is it?"
    parts = [call.body["messages"][0]["content"] for call in calls if call.route == "chat"]
    assert [each[1]["text"] for each in parts[:2]] == ["", "It came\nthis morning."]
    seen = [look(each[0]["image_url"]["url"]) for each in parts]
    assert len({look(PHOTO), *seen}) == 5
    assert all(call.body["max_tokens"] and call.body["ignore_eos"] for call in calls)


@pytest.mark.slow
def test_rungs_over_images_are_measured_in_an_engine(tmp_path: Path) -> None:
    base = seeing.base("idefics3", tmp_path / "base")
    lora = seeing.lora(base, tmp_path / "a", ["q_proj"], seed=1, rank=4)
    bundle = Bundle.create(tmp_path / "bundle", BaseSpec(path=str(base)))
    members = [{"name": "a", "adapters": [bundle.add_adapter("seen", lora)]}]
    common = {"format": 1, "version": 1, "members": members, "fusion": {"method": "average"}}
    labelled = {"task": "classification", "labels": ["card", "fees"], "template": "{image}{text}:"}
    rungs = {}
    for own in ({"name": "seen", **labelled}, {"name": "captions", "task": "generation"}):
        ensemble = Ensemble.model_validate({**common, **own})
        bundle.write_ensemble(ensemble)
        rungs[ensemble.name] = ensemble
    with EngineTimer(bundle, "seen") as timer:
        times = timer.milliseconds(bundle, rungs, INPUTS)
    assert timer.problem is None
    assert times.keys() == {"seen", "captions"}


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


async def test_a_refused_input_costs_its_own_time_alone() -> None:
    async def always(turn: int) -> None:
        return

    async def mostly(turn: int) -> None:
        if turn % 9 == 1:
            raise RefusedError(400, "The text is too long.")

    async def never(turn: int) -> None:
        raise RefusedError(400, "The base has no such token.")

    refusals: set[str] = set()
    times = await _medians({"a": always, "b": mostly, "c": never}, refusals)
    assert times.keys() == {"a", "b"}
    assert refusals == {"The text is too long.", "The base has no such token."}

"""The parts of the demo: the load, the scores, and the server process."""

import socket
from pathlib import Path
from typing import Any

import pytest
import yaml

from choir_cli.console import UsageError, out
from choir_cli.demo.load import Load
from choir_cli.demo.plan import PARTS, Plan
from choir_cli.demo.scoring import Score, scores, with_times
from choir_cli.demo.server import Server, ServerFailed, require_free
from choir_cli.demo.trainer import Trainer, same_recipe
from choir_client import Choir, ChoirError
from tests.clients.conftest import LocalServer
from tests.training.conftest import recipe_content
from training.execution.run import WORK, Run
from training.leaderboard.board import Leaderboard, Rung
from training.progress import Unwatched
from training.recipe import load_recipe

TEXTS = ["a", "b", "c", "d"]


def answer(model: str, label: str = "x") -> dict[str, object]:
    return {
        "model": model,
        "data": [{"index": i, "label": label, "probabilities": {}} for i in range(4)],
    }


class TestLoad:
    def test_counts_answers_by_version(self, local_server: LocalServer) -> None:
        local_server.answers["POST /v1/predict"] = (200, answer("intents@1"))
        with Load(local_server.url, "intents", TEXTS) as load:
            load.wait_for(20)
            local_server.answers["POST /v1/predict"] = (200, answer("intents@2"))
            load.wait_for(20)
        assert set(load.versions) == {"intents@1", "intents@2"}
        assert load.failures == []
        assert load.requests == len(local_server.bodies) >= 40

    def test_counts_every_failure(self, local_server: LocalServer) -> None:
        local_server.answers["POST /v1/predict"] = (503, {"error": {"message": "no engine"}})
        with Load(local_server.url, "intents", TEXTS) as load:
            load.wait_for(5)
        assert set(load.failures) == {"no engine"}
        assert len(load.failures) == len(local_server.bodies)

    def test_gives_up_on_a_server_that_is_too_slow(self, local_server: LocalServer) -> None:
        local_server.answers["POST /v1/predict"] = (200, answer("intents@1"))
        with (
            pytest.raises(ChoirError, match="fewer than 1000000 requests"),
            Load(local_server.url, "intents", TEXTS) as load,
        ):
            load.wait_for(1_000_000, within=0.1)


def test_scores_members_alone_and_methods_fused(local_server: LocalServer) -> None:
    """Each has its accuracy on every team's messages, and on all of them."""
    local_server.answers["POST /v1/predict"] = (200, answer("intents@1"))
    given = zip(TEXTS, "xxxy", ("mail", "mail", "chat", "chat"), strict=True)
    rows = [{"text": text, "intent": intent, "team": team} for text, intent, team in given]
    with Choir(local_server.url) as choir:
        found = list(scores(choir, "intents", ["a", "b"], ["vote"], rows))
    assert [(s.name, s.accuracy, s.passes) for s in found] == [
        ("a", 0.75, 1),
        ("b", 0.75, 1),
        ("vote", 0.75, 2),
    ]
    assert all(s.by_team == {"mail": 1.0, "chat": 0.5} for s in found)
    asked = {(body["model"], str(body.get("fusion"))) for body in local_server.bodies}
    assert asked == {
        ("intents/a", "None"),
        ("intents/b", "None"),
        ("intents", "{'method': 'vote'}"),
    }


def test_the_leaderboard_gets_the_times_of_the_demos_own_requests() -> None:
    kinds = {"a": "member", "single": "single", "vote": "fusion", "soup": "soup"}
    none: dict[str, Any] = {"scores": {}, "intervals": {}, "validation": {}, "behind_best": None}
    rungs = [
        Rung.model_validate({"name": name, "kind": kind, "passes": 1, "milliseconds": None, **none})
        for name, kind in kinds.items()
    ]
    board = Leaderboard(
        ensemble="intents",
        metric="log_loss",
        rows=4,
        recommended="vote",
        reason="It is.",
        rungs=rungs,
    )
    found = [Score("a", 1, {}, 0.02, 1), Score("b", 1, {}, 0.04, 1), Score("vote", 1, {}, 0.05, 2)]
    timed = with_times(board, found)
    assert [rung.milliseconds for rung in timed.rungs] == [20, 30, 50, None]


def test_the_demo_says_what_comes_and_where_the_time_went() -> None:
    plan = Plan()
    with out.capture() as before:
        plan.show()
    assert f"about {sum(part.seconds for part in PARTS)} s on two idle cores" in before.get()
    assert all(f"{part.seconds} s  {part.what}" in before.get() for part in PARTS)
    with out.capture(), plan.part("train"):
        pass
    with out.capture(), pytest.raises(ChoirError), plan.part("serve"):
        raise ChoirError("no port")
    with out.capture() as after:
        plan.show_times()
    # A part that failed took its time too; those that never began are not listed.
    assert "train" in after.get()
    assert "serve" in after.get()
    assert "swap" not in after.get()


def recipe_in(folder: Path) -> Path:
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe_content()))
    return file


class TestTrainer:
    def test_a_run_goes_on_only_with_the_recipe_that_began_it(self, tmp_path: Path) -> None:
        recipe, bundle = recipe_in(tmp_path), tmp_path / "bundle"
        assert not same_recipe(recipe, bundle)
        Run.begin(bundle / WORK, load_recipe(recipe), Unwatched())
        assert same_recipe(recipe, bundle)
        recipe.write_text(recipe.read_text().replace("seed: 3", "seed: 4"))
        assert not same_recipe(recipe, bundle)

    @pytest.mark.slow
    def test_a_training_that_fails_ends_the_waiting(self, tmp_path: Path) -> None:
        """The recipe's data is not there."""
        trainer = Trainer(recipe_in(tmp_path), tmp_path / "demo" / "bundle")
        trainer.start()
        with pytest.raises(ChoirError, match="training failed; the reason is printed above"):
            trainer.wait_until_servable()


class TestServer:
    def test_a_port_in_use_is_a_usage_error(self) -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            with pytest.raises(UsageError, match=rf"port {port} .* in use.*DEMO_PORT"):
                require_free(port)

    def test_the_error_of_a_server_that_cannot_start_is_quoted(self, tmp_path: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        server = Server(tmp_path / "no-bundle", port, tmp_path / "store", tmp_path / "log")
        with server, pytest.raises(ServerFailed, match="the server ended: choir: "):
            server.wait_until_ready()

"""`fusion: {method: auto}`: the recommendation becomes the ensemble's next version, with its merges as rungs."""

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from serve.fusion.fuse import Fusion
from serve.manifest import Abstain
from tests.training.conftest import recipe_content
from training.leaderboard.board import read_board
from training.leaderboards import Boards
from training.offline.members import OfflineMembers
from training.pipeline import train
from training.recipe import RecipeError, load_recipe


def topics(**changes: Any) -> dict[str, Any]:
    """Two members with heads, merged, and served as recommended."""
    ensemble = recipe_content()["ensembles"][0]
    return ensemble | {
        "template": "{text}",
        "verbalizers": {},
        "candidates": [],
        "baselines": [],
        "members": [{"name": "a", "seed": 1}, {"name": "b", "seed": 2}],
        "merges": ["cat", "uniform_soup"],
        "fusion": {"method": "auto", "candidates": ["average"]},
        **changes,
    }


class Broken:
    """A timer whose engine has failed."""

    problem: str | None = "Requests were not measured: the engine has failed."

    def milliseconds(self, *_: object) -> dict[str, float]:
        return {}


def test_the_recommended_rung_is_the_version_that_is_served(
    tmp_path: Path,
    write_recipe: Callable[..., Path],
    encoder_base: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    base = {"kind": "encoder", "path": str(encoder_base)}
    recipe = write_recipe(tmp_path, base=base, ensembles=[topics()])
    boards = Boards(timed=lambda *_: nullcontext(Broken()))
    bundle = train(recipe, tmp_path / "bundle", boards=boards)
    assert "topics: Requests were not measured: the engine" in capsys.readouterr().out

    board = read_board(bundle.path, "topics")
    assert board is not None
    assert {"merged-cat", "uniform-soup"} <= {rung.name for rung in board.rungs}
    first, served = bundle.ensemble("topics", 1), bundle.ensemble("topics")
    assert (len(first.members), first.fusion.method) == (2, "average")
    assert board.rung("average").passes == 2
    assert first.scores["verdict"].startswith("topics: average ")
    assert board.recommended != "average", "these members are so weak that a stacker gains much"
    assert served.version == 2
    assert served.scores["verdict"] == first.scores["verdict"]
    rung = board.rung(board.recommended)
    assert len(served.members) == rung.passes
    assert served.scores["validation"]["log_loss"] == pytest.approx(rung.validation["log_loss"])
    assert bundle.verify() == []
    assert served.golden
    texts = [str(each.input) for each in served.golden]
    outputs = OfflineMembers(bundle, served).outputs(texts)
    answers = Fusion.from_manifest(served, bundle.fusion_path(served))(outputs)
    labels = [(served.labels or [])[winner] for winner in answers.winners]
    assert labels == [each.label for each in served.golden]

    again = train(recipe, tmp_path / "bundle", resume=True)
    assert read_board(again.path, "topics") == board


def test_what_is_recommended_abstains_as_the_recipe_says(
    tmp_path: Path, write_recipe: Callable[..., Path], encoder_base: Path
) -> None:
    risks = {"abstain": {"risk": 0.3}, "early_exit": {"risk": 0.3}}
    fusion = {"method": "auto", "candidates": ["weighted_average"], **risks}
    base = {"kind": "encoder", "path": str(encoder_base)}
    recipe = write_recipe(tmp_path, base=base, ensembles=[topics(merges=[], fusion=fusion)])
    bundle = train(recipe, tmp_path / "bundle")
    first, served = bundle.ensemble("topics", 1), bundle.ensemble("topics")
    assert first.fusion.early_exit is not None
    assert first.fusion.abstain == served.fusion.abstain == Abstain(risk=0.3)
    board = read_board(bundle.path, "topics")
    assert board is not None
    assert "weighted_average-early" in {rung.name for rung in board.rungs}
    fused = Fusion.from_manifest(served, bundle.fusion_path(served))
    assert fused.selective.abstain(None, None, own=True) is not None
    assert bundle.verify() == []


def test_members_that_cannot_be_merged_are_refused_before_they_are_trained(
    tmp_path: Path, write_recipe: Callable[..., Path]
) -> None:
    """A merge of ranks that no engine takes would fail after hours."""
    members = [{"name": name, "rank": 64} for name in "ab"]
    recipe = write_recipe(tmp_path, ensembles=[topics(members=members)])
    with pytest.raises(RecipeError, match=r"merges.*cat.*128"):
        load_recipe(recipe)
    prefix = [{"name": "a"}, {"name": "b", "kind": "prefix", "virtual_tokens": 2}]
    recipe = write_recipe(tmp_path, ensembles=[topics(members=prefix)])
    with pytest.raises(RecipeError, match=r"merges.*'b'"):
        load_recipe(recipe)

"""The last lines of a training run: an honest verdict in one line, whole paths, and a command that can be copied."""

import io
import math
from pathlib import Path

import numpy as np
import pytest

from serve.manifest import Member
from serve.terminal.screen import Screen
from tests.serve.fakes import make_adapter, make_bundle
from training.evaluation.metrics.classification import classification_metrics
from training.evaluation.scores import EvaluationReport, System, compare
from training.verdict import conclude, serve_options, verdict

ROWS = 200


def system(name: str, kind: str, right: int, first: int = 0) -> System:
    """A system that answers `right` rows in turn rightly, from row `first`."""
    truth = np.zeros(ROWS, dtype=np.int64)
    winners = np.ones(ROWS, dtype=np.int64)
    winners[np.arange(first, first + right) % ROWS] = 0
    metrics = {"accuracy": classification_metrics(None, winners, truth)["accuracy"]}
    return System(name, kind, metrics, served=kind == "fusion")  # type: ignore[arg-type]


def report(*systems: System, data: str = "validation") -> EvaluationReport:
    return compare("intents@3", data, ROWS, systems, "accuracy")


@pytest.mark.parametrize(
    ("fused", "first", "words"),
    [
        (190, 0, "fusing pays"),
        (162, 160, "fusing may pay, or it is chance"),
        (160, 0, "fusing does not pay here"),
        (158, 140, "fusing does not pay here"),
        (120, 0, "fusing does harm here"),
    ],
)
def test_the_verdict_follows_from_the_difference_and_its_interval(
    fused: int, first: int, words: str
) -> None:
    """The better member has 160 of 200 right. The interval is compared with the exact one of the paired difference."""
    members = [system("a", "member", 150), system("b", "member", 160)]
    served = system("average", "fusion", fused, first)
    said = verdict(report(*members, served))
    assert said.startswith(f"intents: average {fused / 200:.4f}, best member b 0.8000 (accuracy on")
    assert said.endswith(f": {words}")
    assert "200 validation rows" in said
    assert "\n" not in said
    apart = np.zeros(ROWS)
    apart[np.arange(first, first + fused) % ROWS] += 1
    apart[:160] -= 1
    spread = 1.96 * apart.std() / math.sqrt(ROWS)
    low, high = (float(each) for each in said.split("[")[1].split("]")[0].split(","))
    assert low == pytest.approx(apart.mean() - spread, abs=0.012)
    assert high == pytest.approx(apart.mean() + spread, abs=0.012)


def test_one_member_is_not_called_a_fusion_that_pays() -> None:
    said = verdict(report(system("a", "member", 150), system("average", "fusion", 150)))
    assert said == "intents: one member, so there is nothing to fuse"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("terminal", [True, False])
def test_a_run_ends_in_verdicts_paths_and_the_next_command(
    monkeypatch: pytest.MonkeyPatch, terminal: bool
) -> None:
    """On a terminal sentences wrap by word at 80 columns; what is to be copied is on one line, in a pipe everything."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("sys.stdout", out := Terminal() if terminal else io.StringIO())
    members = [system("a", "member", 150), system("b", "member", 160)]
    fused = system("average", "fusion", 158)
    bundle = Path("/data") / ("long" * 20) / "a bundle"
    reports = [report(*members, fused), report(*members, fused, data="test")]
    conclude(Screen(), reports, [], bundle)
    lines = out.getvalue().splitlines()
    assert lines[-3:] == [
        f"bundle: {bundle}",
        f"report: {bundle}/report/index.html",
        f"next: choir serve '{bundle}'",
    ]
    said = lines[:-3]
    assert " ".join(said) == verdict(reports[0]), "of the validation rows, once"
    if terminal:
        assert max(map(len, said)) <= 80
    else:
        assert len(said) == 1
        assert "\x1b" not in out.getvalue()


@pytest.mark.parametrize(
    ("rank", "options"),
    [(2, []), (64, []), (65, ["--engine", '{"max_lora_rank": 128}'])],
)
def test_the_next_command_starts_an_engine_that_takes_the_ranks(
    tmp_path: Path, rank: int, options: list[str]
) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    ref = bundle.add_adapter("wide", make_adapter(tmp_path / "wide", 1, rank=rank))
    first = bundle.ensemble("intents")
    members = [*first.members, Member(name="wide", adapters=[ref])]
    bundle.write_ensemble(first.model_copy(update={"version": 2, "members": members}))
    assert serve_options(bundle) == options

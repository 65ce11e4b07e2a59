"""Coverage and risk on the leaderboard, counted by hand."""

import numpy as np
import pytest

from serve.fusion.fitting.options import FusionOptions
from serve.fusion.fuse import Fusion
from serve.fusion.fused import Fused
from serve.manifest import Abstain, AdapterRef, Ensemble, FusionSpec, Member
from training.leaderboard.contender import FittingRows
from training.leaderboard.judgement import Entry
from training.leaderboard.labels import contenders, label_entries
from training.leaderboard.outputs import MemberOutputs
from training.progress import Unwatched

ROWS, LABELS = 600, 3
BOUND = Abstain(risk=0.05)


def drawn(members: list[Member], rng: np.random.Generator) -> tuple[MemberOutputs, np.ndarray]:
    """Outputs of members that are mostly right where they are sure."""
    truth = rng.integers(0, LABELS, ROWS)
    outputs = MemberOutputs()
    for member in members:
        knows = rng.uniform(-0.5, 4, ROWS)[:, None] * np.eye(LABELS)[truth]
        scores = np.exp(knows + rng.normal(0, 0.7, (ROWS, LABELS)))
        outputs.add(member, scores / scores.sum(axis=1, keepdims=True))
    return outputs, truth


@pytest.fixture(scope="module")
def judged() -> tuple[dict[str, Entry], MemberOutputs, np.ndarray]:
    members = [
        Member(name=name, adapters=[AdapterRef(adapter=name, digest=f"sha256:{place:064x}")])
        for place, name in enumerate("ab")
    ]
    ensemble = Ensemble(
        format=1,
        name="intents",
        version=1,
        task="classification",
        members=members,
        fusion=FusionSpec(method="average"),
        labels=["x", "y", "z"],
    )
    rng = np.random.default_rng(3)
    known, truth = drawn(members, rng)
    new, right = drawn(members, rng)
    options = FusionOptions(method="average", candidates=["average"], abstain=BOUND)
    rows = FittingRows(known, truth, np.arange(ROWS) % 5)
    entries = label_entries(
        contenders(ensemble, [], options), rows, (new, right), BOUND, Unwatched(), "rungs"
    )
    return {each.name: each for each in entries}, new, right


def figure(entry: Entry, name: str) -> float:
    return float(entry.judged[name](np.ones((1, ROWS)))[0])


def test_coverage_and_risk_of_new_rows_are_those_of_the_served_threshold(judged) -> None:
    entries, new, right = judged
    for name in ("a", "single", "average", "vote", "stack"):
        entry = entries[name]
        fusion = Fusion(entry.manifest, entry.parameters)
        answers = fusion(new.of(entry.manifest.members))
        assert isinstance(answers, Fused)
        least = fusion.selective.abstain(BOUND, None, own=True)
        given = answers.probabilities.max(axis=1) >= least
        assert figure(entry, "coverage") == pytest.approx(given.mean())
        wrong = answers.winners[given] != right[given]
        assert figure(entry, "risk") == pytest.approx(wrong.mean() if given.any() else 0)


def test_every_rung_abstains_as_the_recipe_says(judged) -> None:
    for entry in judged[0].values():
        assert entry.manifest.fusion.abstain == BOUND
        served = Fusion(entry.manifest, entry.parameters)
        assert served.selective.abstain(None, None, own=True) is not None


def test_the_risk_of_new_rows_is_inside_its_bound(judged) -> None:
    entries, _, _ = judged
    assert figure(entries["average"], "coverage") > 0.5
    for entry in entries.values():
        assert figure(entry, "risk") <= BOUND.risk + 0.02
        validation = float(entry.validation["risk"](np.ones((1, ROWS)))[0])
        assert validation <= BOUND.risk + 0.02


def test_an_answer_that_never_stands_has_no_risk(judged) -> None:
    entries, _, _ = judged
    resamples = np.stack([np.ones(ROWS), np.zeros(ROWS)])
    risks = entries["average"].judged["risk"](resamples)
    assert risks[1] == 0

"""Members are asked round by round: who is asked about what, and what the answer then says."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from serve.engine.interface import PredictCall, Prediction, PrepareError, Text
from serve.engine.loaded import LoadedVersion, degraded
from serve.engine.scoring.prediction import BaseVectors, MemberScores, predicted
from serve.fusion.errors import FusionError
from serve.fusion.fitting.fit import fit_fusion
from serve.fusion.fitting.options import FusionOptions
from serve.fusion.fuse import Fusion
from serve.fusion.gate import Gate, GateParameters
from serve.gateway.routes.predict import answer
from serve.manifest import Abstain, EarlyExit, Ensemble, FusionSpec, Member
from serve.metrics import REGISTRY

LABELS = list("abcdefgh")
ROWS = 600
NAMES = ("weak", "strong", "middle")
SKILLS = (1.6, 2.4, 2.0)
OPTIONS = {"method": "average", "candidates": ["average"]}


def said() -> tuple[np.ndarray, np.ndarray]:
    """The members' scores for all rows [M, N, C], and the right labels [N]."""
    rng = np.random.default_rng(0)
    truth = rng.integers(len(LABELS), size=ROWS)
    scores = rng.normal(size=(len(NAMES), ROWS, len(LABELS)))
    for member, skill in enumerate(SKILLS):
        scores[member, np.arange(ROWS), truth] += skill
    return scores, truth


SCORES, TRUTH = said()
POWERS = np.exp(SCORES)
PROBABILITIES = POWERS / POWERS.sum(axis=-1, keepdims=True)


class Members:
    """Answers as the members would, and remembers what was asked. An input's text is its row."""

    def __init__(self) -> None:
        self.asked: list[tuple[tuple[str, ...], int]] = []

    async def __call__(self, members: Sequence[Member], inputs: Sequence[Text]) -> MemberScores:
        rows = [int(each.text) for each in inputs]
        names = tuple(member.name for member in members)
        self.asked.append((names, len(rows)))
        scores = SCORES[[NAMES.index(name) for name in names]][:, rows]
        tokens = 3 * len(rows) * len(names)
        return MemberScores(scores, 2 * len(rows), tokens, tokens // 3)


def fitted(**options: Any) -> Ensemble:
    draft = Ensemble(
        format=1,
        name="intents",
        version=1,
        task="classification",
        members=[Member(name=name, adapters=[]) for name in NAMES],
        fusion=FusionSpec(method="average"),
        labels=LABELS,
    )
    settings = FusionOptions(**(OPTIONS | options))
    return fit_fusion(draft, settings, PROBABILITIES, TRUTH, np.arange(ROWS) % 5).ensemble


def loaded(ensemble: Ensemble) -> LoadedVersion:
    version: Any = None
    return LoadedVersion(version, ensemble, (), Fusion(ensemble), {}, frozenset())


async def ask(
    ensemble: Ensemble, count: int = 200, **fields: Any
) -> tuple[Prediction, dict[str, Any], Members]:
    members = Members()
    inputs = tuple(Text(str(row)) for row in range(count))
    call = PredictCall("intents@1", inputs, "r", **fields)
    prediction = await predicted(loaded(ensemble), call, members, None)
    return prediction, answer("intents@1", prediction), members


async def test_all_members_are_asked_at_once_without_early_exit() -> None:
    _, document, members = await ask(fitted(), return_members=True)
    assert members.asked == [(NAMES, 200)]
    assert document["usage"] == {
        "prompt_tokens": 400,
        "member_tokens": 1800,
        "computed_tokens": 600,
    }
    row = document["data"][7]
    assert {"members_asked", "abstained"}.isdisjoint(row)
    assert [each["name"] for each in row["members"]] == list(NAMES)


async def test_each_input_stops_by_itself() -> None:
    _, document, members = await ask(fitted(), early_exit=EarlyExit(risk=0.05), return_members=True)
    order = [names for names, _ in members.asked]
    counts = [count for _, count in members.asked]
    assert order == [("strong",), ("middle",), ("weak",)]
    assert counts[0] == 200 > counts[1] > counts[2] > 0
    data = document["data"]
    assert [row["index"] for row in data] == list(range(200))
    assert sum(row["members_asked"] for row in data) == sum(counts)
    assert document["usage"] == {
        "prompt_tokens": 400,
        "member_tokens": 3 * sum(counts),
        "computed_tokens": sum(counts),
    }
    for row in data:
        first = [("strong",), ("middle", "strong"), tuple(sorted(NAMES))][row["members_asked"] - 1]
        assert [each["name"] for each in row["members"]] == [n for n in NAMES if n in first]
        places = [NAMES.index(name) for name in first]
        for each in row["members"]:
            own = PROBABILITIES[NAMES.index(each["name"]), row["index"]]
            assert list(each["probabilities"].values()) == pytest.approx(own.tolist())
        mean = PROBABILITIES[places, row["index"]].mean(axis=0)
        assert row["label"] == LABELS[int(mean.argmax())]
        assert sum(row["probabilities"].values()) == pytest.approx(1)


async def test_an_input_stops_the_same_alone_and_among_others() -> None:
    ensemble = fitted(early_exit={"risk": 0.05})
    _, together, _ = await ask(ensemble, 40)
    for row in (0, 13, 39):
        members = Members()
        call = PredictCall("intents@1", (Text(str(row)),), "r")
        alone = answer("m", await predicted(loaded(ensemble), call, members, None))["data"][0]
        assert alone["members_asked"] == together["data"][row]["members_asked"]
        assert alone["probabilities"] == pytest.approx(together["data"][row]["probabilities"])


async def test_uncertain_answers_abstain_and_say_all_the_same_what_they_would() -> None:
    ensemble = fitted()
    _, plain, _ = await ask(ensemble)
    _, document, _ = await ask(ensemble, abstain=Abstain(risk=0.02))
    abstained = [row.pop("abstained") for row in document["data"]]
    assert 0 < sum(abstained) < 200
    assert document["data"] == plain["data"]
    confidence = [max(row["probabilities"].values()) for row in plain["data"]]
    kept = [sure for sure, left in zip(confidence, abstained, strict=True) if not left]
    left = [sure for sure, left in zip(confidence, abstained, strict=True) if left]
    assert min(kept) >= max(left)


async def test_the_manifest_decides_unless_the_request_does() -> None:
    ensemble = fitted(early_exit={"risk": 0.05}, abstain={"risk": 0.05})
    _, document, _ = await ask(ensemble)
    assert {"members_asked", "abstained"} <= document["data"][0].keys()
    _, document, members = await ask(ensemble, early_exit=EarlyExit(risk=0.0), abstain=None)
    assert {row["members_asked"] for row in document["data"]} == {3}
    _, document, members = await ask(ensemble, method="vote")
    assert members.asked == [(NAMES, 200)], "early exit is fitted for the average"
    assert {"members_asked", "abstained"}.isdisjoint(document["data"][0])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"early_exit": EarlyExit(risk=0.1), "member": "weak"}, "one member was asked"),
        ({"abstain": Abstain(risk=0.1), "member": "weak"}, "one member was asked"),
        ({"early_exit": EarlyExit(risk=0.1), "method": "vote"}, "leave 'method' and 'weights'"),
        ({"abstain": Abstain(risk=0.1), "method": "vote"}, "leave 'method' and 'weights'"),
    ],
)
async def test_what_cannot_be_honoured_is_refused_before_members_are_asked(
    fields: dict[str, Any], message: str
) -> None:
    members = Members()
    call = PredictCall("intents@1", (Text("0"),), "r", **fields)
    with pytest.raises(FusionError, match=message):
        await predicted(loaded(fitted()), call, members, None)
    assert members.asked == []


async def test_a_degraded_ensemble_asks_everyone_who_is_left() -> None:
    ensemble = fitted(early_exit={"risk": 0.05})
    left = degraded(ensemble, {"weak": PrepareError("gone")})
    members = Members()
    call = PredictCall("intents@1", (Text("0"), Text("1")), "r")
    await predicted(loaded(left), call, members, None)
    assert members.asked == [(("strong", "middle"), 2)]
    with pytest.raises(PrepareError, match="kept by all members"):
        degraded(fitted(abstain={"risk": 0.05}), {"weak": PrepareError("gone")})


async def base_vectors(inputs: Sequence[Text]) -> BaseVectors:
    """A vector that says which member is best: the rows take turns."""
    rows = np.array([int(each.text) for each in inputs])
    return BaseVectors(np.eye(3)[rows % 3] * 4, 2 * len(rows))


def unasked() -> float:
    """How often a member was not asked, as the metric has it."""
    labels = {"ensemble": "intents", "asked": "false"}
    return REGISTRY.get_sample_value("choir_member_passes_total", labels) or 0.0


async def test_a_gate_asks_those_whom_it_chooses() -> None:
    gate = Gate(
        GateParameters(
            labels=LABELS,
            members=list(NAMES),
            digests=[[], [], []],
            coefficients=np.diag([4.0, 3.0, 2.0]).tolist(),
            intercept=[0.0, 0.0, 0.5],
        )
    )
    ensemble = fitted().model_copy(
        update={"fusion": FusionSpec(method="gate", model="gate", parameters="g", top_k=1)}
    )
    version: Any = None
    held = LoadedVersion(version, ensemble, (), Fusion(ensemble, gate), {}, frozenset())
    members = Members()
    inputs = tuple(Text(str(row)) for row in range(9))
    call = PredictCall("intents@1", inputs, "r", return_members=True)
    before = unasked()
    document = answer("m", await predicted(held, call, members, base_vectors))
    assert members.asked == [(("weak",), 3), (("strong",), 3), (("middle",), 3)]
    for row in document["data"]:
        chosen = row["index"] % 3
        assert [each["name"] for each in row["members"]] == [NAMES[chosen]]
        own = PROBABILITIES[chosen, row["index"]]
        assert list(row["probabilities"].values()) == pytest.approx(own.tolist())
        assert row["members_asked"] == 1
    assert document["usage"] == {
        "prompt_tokens": 18,
        "member_tokens": 18 + 3 * 9,
        "computed_tokens": 18 + 9,
    }
    assert unasked() - before == 2 * 9, "of three members, two were not asked"
    two = PredictCall("intents@1", inputs, "r", top_k=2, return_members=True)
    wider = answer("m", await predicted(held, two, members, base_vectors))
    shares = gate.weights(np.eye(3)[np.arange(9) % 3] * 4, 2)
    for row in wider["data"]:
        assert row["members_asked"] == len(row["members"]) == 2
        mixed = shares[:, row["index"]] @ PROBABILITIES[:, row["index"]]
        assert list(row["probabilities"].values()) == pytest.approx(mixed.tolist())
    averaged = PredictCall("intents@1", inputs, "r", method="average", top_k=2)
    with pytest.raises(FusionError, match=r"'top_k' is for gate.* not for average"):
        await predicted(held, averaged, members, base_vectors)
    weighted = PredictCall("intents@1", inputs, "r", weights=dict.fromkeys(NAMES, 1))
    with pytest.raises(FusionError, match="'weights' is not for gate"):
        await predicted(held, weighted, members, base_vectors)

"""What a gateway shows of drift: of the active version's own answers, and of nothing else."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from serve.engine.interface import PredictCall, Prediction
from serve.fusion.drift.baseline import Baseline
from serve.fusion.drift.figures import AnswerFigures
from serve.fusion.drift.window import LEAST
from serve.fusion.fused import Fused
from serve.manifest import Ensemble
from serve.watching import drift
from serve.watching.board import families
from tests.serve.gateway.conftest import Gateway, Start
from tests.serve.gateway.fakes import LABELS, desired, ensemble, held, prediction

ROWS = 400


def answered(places: np.ndarray) -> Fused:
    """Confident answers of these labels."""
    return Fused(
        np.eye(len(LABELS))[places], np.full(len(places), 0.1), np.zeros(len(places)), places
    )


def based(version: int = 3) -> Ensemble:
    """An ensemble whose answers to the validation rows had each label equally often, and full agreement."""
    plain = ensemble(version=version)
    places = np.arange(ROWS) % len(LABELS)
    figures = AnswerFigures.of(answered(places), np.ones(ROWS))
    assert figures is not None
    return Baseline.measured(plain, figures).written(plain)


def says(label: int | None) -> Any:
    """Engines that give each input this label, or each label equally often."""

    def predict(call: PredictCall) -> Prediction:
        rows = len(call.inputs)
        places = np.arange(rows) % len(LABELS) if label is None else np.full(rows, label)
        return replace(prediction(call), answers=answered(places), agreement=np.ones(rows))

    return predict


def shown() -> dict[str, float]:
    """Figure -> its index now, and the answers that it is of."""
    return {
        dict(labels).get("figure", "answers"): value
        for family in families()
        if family.name in ("choir_drift_psi", "choir_drift_answers")
        for (_, labels), value in family.samples.items()
    }


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    """Gauges of this process are shared by all tests."""
    drift.drift_forgotten("intents")
    yield
    drift.drift_forgotten("intents")


async def ask(gateway: Gateway, answers: int, **fields: Any) -> None:
    said = await gateway.predict(input=["x"] * answers, **fields)
    assert said.status_code == 200, said.text


async def test_answers_like_the_validation_rows_show_no_drift_and_others_do(start: Start) -> None:
    gateway = await start(desired(held(based())))
    gateway.engines.prediction = says(None)
    await ask(gateway, 500)
    assert shown()["answers"] == 500
    assert shown()["labels"] < 0.01
    other = await start(desired(held(based())))
    other.engines.prediction = says(0)
    await ask(other, 500)
    assert shown()["labels"] > 0.25
    assert shown()["agreement"] < 0.01


async def test_few_answers_have_no_index(start: Start) -> None:
    gateway = await start(desired(held(based())))
    gateway.engines.prediction = says(0)
    await ask(gateway, LEAST - 1)
    assert shown() == {"answers": LEAST - 1}


@pytest.mark.parametrize(
    "fields",
    [{"model": "intents/a"}, {"model": "intents@3"}, {"fusion": {"method": "vote"}}],
    ids=["one member", "a version", "another fusion"],
)
async def test_what_does_not_come_from_the_active_versions_own_fusion_does_not_count(
    start: Start, fields: dict[str, Any]
) -> None:
    gateway = await start(desired(held(based())))
    gateway.engines.prediction = says(0)
    await ask(gateway, 500, **fields)
    assert shown() == {}


async def test_an_ensemble_without_a_baseline_shows_nothing(start: Start) -> None:
    gateway = await start(desired(held(ensemble())))
    gateway.engines.prediction = says(0)
    await ask(gateway, 500)
    assert shown() == {}


async def test_a_new_version_begins_anew(start: Start) -> None:
    gateway = await start(desired(held(based(3))))
    gateway.engines.prediction = says(0)
    await ask(gateway, 500)
    gateway.controller.will_say(desired(held(based(4))))
    assert await gateway.agent.refresh()
    gateway.engines.prediction = says(None)
    await ask(gateway, 300)
    assert shown()["answers"] == 300
    assert shown()["labels"] < 0.01
    gateway.controller.will_say(desired(held(ensemble(version=5))))
    assert await gateway.agent.refresh()
    await ask(gateway, 300)
    assert shown() == {}

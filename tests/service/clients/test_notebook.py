"""examples/ask_choir.ipynb against a real server."""

import numpy as np
import pytest

from tests.examples import notebook
from tests.service.models import LABELS
from tests.service.running import Service

pytestmark = pytest.mark.engine


def test_every_cell_runs_and_its_answers_are_the_members_average(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHOIR_URL", service.url)

    names = notebook.run()

    assert names["answer"].model.startswith("intents@")
    for item in names["answer"].data:
        members = [[each.probabilities[x] for x in LABELS] for each in item.members]
        fused = [item.probabilities[x] for x in LABELS]
        np.testing.assert_allclose(fused, np.mean(members, axis=0), atol=1e-6)
    assert names["alone"].labels == [
        next(each.label for each in item.members if each.name == "a")
        for item in names["answer"].data
    ]
    assert names["written"]
    assert names["status"].name == "intents"

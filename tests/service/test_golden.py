"""Golden inputs are answered by the real engine on both replicas before a version goes live."""

from typing import Any

import numpy as np
import pytest

from tests.service.models import LABELS, TEXTS, Models
from tests.service.running import Service

pytestmark = pytest.mark.engine

SWAP = "/v1/ensembles/intents/swap?wait=true"


def manifest(models: Models, golden: list[dict[str, Any]]) -> dict[str, Any]:
    from serve.bundle import Bundle

    first = Bundle.open(models.bundle).ensemble("intents", 1)
    return first.model_dump(mode="json", exclude_none=True) | {"golden": golden}


def test_peft_answers_as_golden_inputs(service: Service, models: Models) -> None:
    golden = []
    for text in TEXTS:
        fused = np.mean([models.references[models.digest(m)][text] for m in ("a", "b", "c")], 0)
        golden.append({"input": text, "label": LABELS[int(np.argmax(fused))]})

    swapped = service.post(SWAP, {"manifest": manifest(models, golden)})
    assert swapped.status_code == 200, swapped.text

    before = service.get("/v1/ensembles/intents").json()["active_version"]
    wrong = next(label for label in LABELS if label != golden[2]["label"])
    golden[2]["label"] = wrong
    refused = service.post(SWAP, {"manifest": manifest(models, golden)})
    assert refused.status_code == 400, refused.text
    assert f"golden input 2 ({TEXTS[2]!r})" in refused.json()["error"]["message"]
    assert service.get("/v1/ensembles/intents").json()["active_version"] == before

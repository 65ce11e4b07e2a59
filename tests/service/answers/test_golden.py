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
    # Other tests of this folder swap adapters with which it would be answered otherwise.
    back = service.post("/v1/ensembles/intents/rollback?wait=true", {})
    assert back.status_code == 200, back.text


def test_texts_that_peft_writes_are_golden(service: Service, models: Models) -> None:
    """One member answers alone: the check is the same for the votes of several."""
    from serve.bundle import Bundle
    from tests.serve import tiny

    replies = Bundle.open(models.bundle).ensemble("replies", 1)
    own = replies.model_dump(mode="json", exclude_none=True)
    own["members"] = own["members"][:1]
    peft = tiny.Reference(models.base, models.adapters["a"])
    golden = [
        {
            "input": text,
            "text": peft.tokenizer.decode(peft.greedy(text, 6), skip_special_tokens=True).strip(),
            "max_tokens": 6,
        }
        for text in TEXTS
    ]
    swap = "/v1/ensembles/replies/swap?wait=true"
    swapped = service.post(swap, {"manifest": own | {"golden": golden}})
    assert swapped.status_code == 200, swapped.text
    before = service.get("/v1/ensembles/replies").json()["active_version"]
    golden[1]["text"] += "?"
    refused = service.post(swap, {"manifest": own | {"golden": golden}})
    assert refused.status_code == 400, refused.text
    assert f"golden input 1 ({TEXTS[1]!r})" in refused.json()["error"]["message"]
    assert service.get("/v1/ensembles/replies").json()["active_version"] == before
    # Other tests of this folder ask the ensemble of three.
    back = service.post("/v1/ensembles/replies/rollback?wait=true", {})
    assert back.status_code == 200, back.text

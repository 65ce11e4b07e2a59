"""One request is one trace over gateway, engine, fusion and vLLM, below the client's own span."""

import pytest

from tests.service.models import TEXTS
from tests.service.running import Service
from tests.watching.receiver import Receiver

pytestmark = [pytest.mark.engine, pytest.mark.slow]

CLIENT = "b7ad6b7169203331"
MEMBERS = 3


def parent(trace: str) -> dict[str, str]:
    return {"traceparent": f"00-{trace}-{CLIENT}-01"}


def test_a_prediction(service: Service, receiver: Receiver) -> None:
    trace = "0af7651916cd43dd8448eb211c80319c"
    body = {"model": "intents", "input": TEXTS[0]}
    answer = service.post("/v1/predict", body, headers=parent(trace))
    assert answer.status_code == 200, answer.text
    found = receiver.wait_for(
        trace, "choir.proxy", "POST /v1/predict", "choir.engine", "choir.fusion", "llm_request"
    )
    (proxy,) = found.pop("choir.proxy")
    (gateway,), (engine,) = found["POST /v1/predict"], found["choir.engine"]
    (fusion,) = found["choir.fusion"]
    assert set(found) == {"POST /v1/predict", "choir.engine", "choir.fusion", "llm_request"}
    assert (proxy.parent, gateway.parent) == (CLIENT, proxy.span)
    assert engine.parent == gateway.span
    assert fusion.parent == engine.span
    assert {span.parent for span in found["llm_request"]} == {engine.span}
    assert len(found["llm_request"]) >= MEMBERS
    assert gateway.attributes["choir.ensemble"] == "intents"
    assert engine.attributes["choir.version"] == answer.json()["model"]
    assert fusion.attributes["choir.method"] == "average"
    said = str([span for spans in found.values() for span in spans])
    assert TEXTS[0] not in said


@pytest.mark.parametrize(
    ("model", "members"), [("replies", MEMBERS), ("replies/a", 1)], ids=["a vote", "one member"]
)
def test_a_text(service: Service, receiver: Receiver, model: str, members: int) -> None:
    trace = f"{members:032x}"
    body = {"model": model, "prompt": TEXTS[1], "max_tokens": 3, "stream": members == 1}
    answer = service.post("/v1/completions", body, headers=parent(trace))
    assert answer.status_code == 200, answer.text
    found = receiver.wait_for(
        trace, "choir.proxy", "POST /v1/completions", "choir.engine", "llm_request"
    )
    (proxy,) = found["choir.proxy"]
    (gateway,), (engine,) = found["POST /v1/completions"], found["choir.engine"]
    assert (proxy.parent, gateway.parent) == (CLIENT, proxy.span)
    assert engine.parent == gateway.span
    assert [span.parent for span in found["llm_request"]] == [engine.span] * members
    assert TEXTS[1] not in str(found)

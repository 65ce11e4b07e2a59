"""Swaps while requests flow, to other kinds of adapters too: none fails, none is mixed, and the next one is answered by
the new version."""

from typing import Any

import pytest

from tests.serve import tiny
from tests.service.load import Load, wrong_members
from tests.service.models import LABELS, TEXTS, Models
from tests.service.running import Service

pytestmark = pytest.mark.engine


def active(service: Service, name: str = "intents") -> int:
    return int(service.get(f"/v1/ensembles/{name}").json()["active_version"])


def swap(service: Service, models: Models, members: dict[str, str], **fields: Any) -> Any:
    body = {"members": {name: models.uri(adapter) for name, adapter in members.items()}, **fields}
    return service.post("/v1/ensembles/intents/swap?wait=true", body)


def digests(service: Service) -> dict[str, str]:
    """Return the adapters that answer now, by member."""
    body = {"model": "intents", "input": TEXTS[0], "return_members": True}
    (row,) = service.post("/v1/predict", body).json()["data"]
    return {member["name"]: member["adapters"][0]["digest"] for member in row["members"]}


def test_the_first_request_after_a_swap_is_answered_by_the_new_version(
    service: Service, models: Models
) -> None:
    before = active(service)
    for turn in range(4):
        adapter = "a2" if turn % 2 == 0 else "a"
        rollout = swap(service, models, {"a": adapter})
        assert rollout.status_code == 200, rollout.text
        assert rollout.json()["state"] in ("draining", "done")
        body = {"model": "intents", "input": TEXTS, "return_members": True}
        answer = service.post("/v1/predict", body).json()
        assert answer["model"] == f"intents@{rollout.json()['to']}"
        for text, row in zip(TEXTS, answer["data"], strict=True):
            assert row["members"][0]["adapters"][0]["digest"] == models.digest(adapter)
            assert wrong_members(row, text, LABELS, models.references) is None
    assert active(service) > before


def test_no_request_fails_and_no_answer_is_mixed_while_adapters_are_swapped(
    service: Service, models: Models
) -> None:
    load = Load(service.url, "intents", TEXTS, LABELS, models.references)
    with load:
        load.wait_for(50)
        for members in ({"a": "a2"}, {"a": "prefix", "b": "prompt"}, {"a": "a", "b": "b"}):
            assert swap(service, models, members).status_code == 200
            load.wait_for(50)
        back = service.post("/v1/ensembles/intents/rollback?wait=true", {})
        assert back.status_code == 200
        load.wait_for(50)
    assert load.failures == []
    assert len(load.versions) >= 4, "requests were answered by every version in turn"


def test_rollback_goes_back_to_the_version_before_under_its_old_number(
    service: Service, models: Models
) -> None:
    first = swap(service, models, {"c": "a2"}).json()["to"]
    second = swap(service, models, {"c": "b2"}).json()["to"]
    assert active(service) == second
    back = service.post("/v1/ensembles/intents/rollback?wait=true", {})
    assert (back.status_code, back.json()["to"]) == (200, first)
    assert digests(service)["c"] == models.digest("a2")
    assert active(service) == first


def test_a_pinned_version_answers_while_it_is_warm(service: Service, models: Models) -> None:
    old = active(service)
    new = swap(
        service, models, {"b": "b2" if digests(service)["b"] != models.digest("b2") else "b"}
    )
    assert new.status_code == 200, new.text
    pinned = service.post("/v1/predict", {"model": f"intents@{old}", "input": TEXTS[0]})
    assert pinned.json()["model"] == f"intents@{old}"


def test_a_swap_with_the_wrong_expected_version_conflicts(service: Service, models: Models) -> None:
    now = active(service)
    refused = swap(service, models, {"a": "a2"}, expected_version=now + 40)
    assert refused.status_code == 409
    assert str(now) in refused.json()["error"]["message"]
    assert active(service) == now


def test_rollouts_are_listed(service: Service, models: Models) -> None:
    rollout = swap(service, models, {"a": "a"}).json()
    listed = service.get("/v1/rollouts").json()["data"]
    assert rollout["id"] in [entry["id"] for entry in listed]
    assert service.get(f"/v1/rollouts/{rollout['id']}").json()["ensemble"] == "intents"


def test_a_lora_under_a_new_name_writes_as_peft_does_until_it_is_unloaded(
    service: Service, models: Models
) -> None:
    folder = models.adapters["a2"]
    loaded = service.post("/v1/load_lora_adapter", {"lora_name": "poems", "lora_path": str(folder)})
    assert loaded.status_code == 200, loaded.text
    body = {
        "model": "poems",
        "prompt": TEXTS[0],
        "max_tokens": 12,
        "temperature": 0,
        "ignore_eos": True,
        "return_token_ids": True,
    }
    answer = service.post("/v1/completions", body).json()
    written = tiny.Reference(models.base, folder).greedy(TEXTS[0], 12)
    assert answer["choices"][0]["token_ids"] == written
    gone = service.post("/v1/unload_lora_adapter", {"lora_name": "poems"})
    assert gone.status_code == 200, gone.text
    assert service.post("/v1/completions", body).status_code == 404

"""A bad request gets the right 4xx and a sentence, and the active version keeps answering."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.serve import tiny
from tests.service.models import TEXTS, Models
from tests.service.running import Service

pytestmark = pytest.mark.engine

PREDICT, CHAT, SWAP = "/v1/predict", "/v1/chat/completions", "/v1/ensembles/intents/swap?wait=true"


def asks(model: str, **fusion: Any) -> dict[str, Any]:
    return {"model": model, "input": "x", "fusion": fusion}


@pytest.fixture(autouse=True)
def _the_active_version_keeps_answering(service: Service) -> Any:
    before = service.get("/v1/ensembles/intents").json()["active_version"]
    yield
    assert service.get("/v1/ensembles/intents").json()["active_version"] == before
    good = service.post(PREDICT, {"model": "intents", "input": TEXTS[0]})
    assert good.status_code == 200


def refused(response: httpx.Response, status: int, words: str) -> None:
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert words.lower() in error["message"].lower()
    assert "Traceback" not in response.text


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        (PREDICT, {"model": "nobody", "input": "x"}, 404, "nobody"),
        (PREDICT, {"model": "intents@999", "input": "x"}, 404, "999"),
        (PREDICT, {"model": "intents/z", "input": "x"}, 404, "z"),
        (PREDICT, {"model": "intents", "input": ""}, 400, "empty"),
        (PREDICT, {"model": "intents", "input": []}, 400, "input"),
        (PREDICT, {"model": "intents", "input": "card " * 20_000}, 400, "shorten the text"),
        # Larger than gRPC's default limit of a message between gateway and engine.
        (PREDICT, {"model": "intents", "input": ["card " * 20_000] * 50}, 400, "shorten the text"),
        (PREDICT, {"model": "intents", "input": 7}, 400, "input"),
        (PREDICT, {"model": "intents", "input": ["x"] * 1025}, 400, "1,024"),
        (PREDICT, {"model": "intents", "input": "x", "colour": 1}, 400, "colour"),
        (PREDICT, {"model": "intents"}, 400, "input"),
        (PREDICT, {"model": "intents", "input": "x", "fusion": {"method": "sum"}}, 400, "average"),
        (PREDICT, {"model": "intents", "input": "x", "fusion": {"method": "stack"}}, 400, "stack"),
        (PREDICT, asks("intents", early_exit={"risk": 0.1}), 400, "has no fit of early exit"),
        (PREDICT, asks("intents", abstain={"risk": 0.1}), 400, "has no fit of abstaining"),
        (PREDICT, asks("careful/a", early_exit={"risk": 0.1}), 400, "one member was asked"),
        (PREDICT, asks("careful", early_exit={"risk": 0.1}, method="vote"), 400, "leave 'method'"),
        (PREDICT, asks("careful", early_exit={"risk": 1.5}), 400, "less than or equal to 1"),
        (PREDICT, asks("careful", early_exit={"risk": "low"}), 400, "number"),
        (PREDICT, asks("careful", early_exit={}), 400, "risk"),
        (PREDICT, asks("careful", abstain={"risk": -0.1}), 400, "greater than or equal to 0"),
        (PREDICT, asks("careful", abstain={"risk": 0.1, "sure": 1}), 400, "sure"),
        (
            PREDICT,
            {"model": "intents", "input": "x", "fusion": {"weights": {"a": 1}}},
            400,
            "weights",
        ),
        (PREDICT, {"model": "replies", "input": "x"}, 400, "completions"),
        (CHAT, {"model": "replies", "messages": "x"}, 400, "messages"),
        (CHAT, {"model": "replies"}, 400, "messages"),
        (CHAT, {"messages": [{"role": "user", "content": "x"}]}, 400, "model"),
        ("/v1/nothing", {}, 404, "nothing"),
        (SWAP, {}, 400, "members"),
        (SWAP, {"members": {"z": "file:///tmp"}}, 400, "z"),
        (SWAP, {"members": {"a": "file:///etc"}}, 403, "--adapter-root"),
        (SWAP, {"members": {"a": "s3://bucket/adapter"}}, 403, "--adapter-prefix"),
        (SWAP, {"members": {"a": 1}}, 400, "members"),
        (SWAP, {"version": 999}, 404, "999"),
    ],
)
def test_requests(service: Service, path: str, body: object, status: int, words: str) -> None:
    refused(service.post(path, body), status, words)


@pytest.mark.parametrize("body", [b"{", b"", b"[1", b'{"model": NaN}', b"\xff\xfe"])
@pytest.mark.parametrize("path", [PREDICT, CHAT, SWAP])
def test_malformed_json(service: Service, path: str, body: bytes) -> None:
    headers = {"content-type": "application/json"}
    response = httpx.post(service.url + path, content=body, headers=headers)
    refused(response, 400, "")


@pytest.mark.parametrize(
    "header",
    [{"x-request-timeout-seconds": "0.000001"}, {"serve_multiplexed_model_id": "somebody"}],
)
def test_no_header_sets_a_limit_of_rays(service: Service, header: dict[str, str]) -> None:
    body = {"model": "intents", "input": [f"{number} card" for number in range(20)]}
    assert service.post(PREDICT, body, headers=header).status_code == 200


def test_rays_list_of_routes_is_an_unknown_route(service: Service) -> None:
    refused(httpx.get(service.url + "/-/routes"), 404, "/-/routes")


def test_a_foreign_page_cannot_swap(service: Service, models: Models) -> None:
    body = {"members": {"a": models.uri("a2")}}
    refused(service.post(SWAP, body, headers={"origin": "https://evil.example"}), 403, "origin")
    response = httpx.post(service.url + SWAP, content=json.dumps(body))
    assert response.status_code in (400, 403, 415)


def pickled(folder: Path) -> None:
    (folder / "adapter_model.safetensors").unlink()
    (folder / "adapter_model.bin").write_bytes(b"\x80\x04.")


def not_finite(folder: Path) -> None:
    tensors = load_file(folder / "adapter_model.safetensors")
    name = next(iter(tensors))
    tensors[name] = np.full_like(tensors[name], np.nan)
    save_file(tensors, folder / "adapter_model.safetensors")


def cut_off(folder: Path) -> None:
    file = folder / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def config(**fields: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        file = folder / "adapter_config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))

    return change


def other_modules(folder: Path) -> None:
    tensors = load_file(folder / "adapter_model.safetensors")
    renamed = {
        name.replace("q_proj", "xx_proj").replace("v_proj", "yy_proj"): value
        for name, value in tensors.items()
    }
    save_file(renamed, folder / "adapter_model.safetensors")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (pickled, "safetensors"),
        (not_finite, "finite"),
        (cut_off, "safetensors"),
        (config(peft_type="PREFIX_TUNING"), "num_virtual_tokens"),
        (config(peft_type="IA3"), "ia3"),
        (config(r=4), "rank"),
        (config(use_dora=True), "dora"),
        (other_modules, "module"),
        (lambda folder: (folder / "adapter_config.json").write_text("{"), "json"),
        (lambda folder: (folder / "adapter_config.json").unlink(), "adapter_config.json"),
    ],
)
def test_broken_adapters(
    service: Service, models: Models, damage: Callable[[Path], None], words: str, request: Any
) -> None:
    folder = models.root / "adapters" / f"broken-{abs(hash(request.node.name))}"
    shutil.copytree(models.adapters["a2"], folder)
    damage(folder)
    refused(service.post(SWAP, {"members": {"a": folder.as_uri()}}), 400, words)


def test_an_adapter_of_another_base(service: Service, models: Models, tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(models.base)
    config.hidden_size, config.head_dim = 192, 48
    base = tmp_path / "wide"
    AutoModelForCausalLM.from_config(config).save_pretrained(base)
    folder = tiny.lora(base, models.root / "adapters" / "wide", seed=1)
    refused(service.post(SWAP, {"members": {"a": folder.as_uri()}}), 400, "does not fit the base")


def test_a_rank_beyond_the_engines_limit(service: Service, models: Models) -> None:
    folder = tiny.lora(models.base, models.root / "adapters" / "wide-rank", seed=1, rank=96)
    refused(service.post(SWAP, {"members": {"a": folder.as_uri()}}), 400, "64")


def test_an_adapter_that_changes_nothing(service: Service, models: Models) -> None:
    folder = tiny.lora(models.base, models.root / "adapters" / "nothing", seed=1, scale=0.0)
    refused(service.post(SWAP, {"members": {"a": folder.as_uri()}}), 400, "change")


def test_a_link_out_of_the_allowed_roots(service: Service, models: Models) -> None:
    link = models.root / "adapters" / "link"
    link.symlink_to(models.base)
    refused(service.post(SWAP, {"members": {"a": link.as_uri()}}), 403, "--adapter-root")

"""A server whose ensembles do not fit into its engine at once: all of them answer, and are swapped, over HTTP."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from serve.bundle import BaseSpec, Bundle
from serve.manifest import Ensemble
from tests.serve import tiny
from tests.service.running import Service, serving

pytestmark = [pytest.mark.engine, pytest.mark.slow]

COUNT = 30
CONFIG = """
adapter_slots: 2
host_adapters: 5
pinned: [e0]
dtype: float32
engine: {kv_cache_memory_bytes: 268435456}
"""


def make_many(root: Path) -> Path:
    """Make a bundle with an ensemble for each adapter."""
    base = tiny.causal_base(root / "base")
    bundle = Bundle.create(root / "bundle", BaseSpec(path=str(base)))
    for number in range(COUNT):
        name = f"e{number}"
        folder = tiny.lora(base, root / "adapters" / name, seed=number, rank=4)
        manifest = {
            "format": 1,
            "name": name,
            "version": 1,
            "task": "classification",
            "members": [{"name": "a", "adapters": [bundle.add_adapter(name, folder)]}],
            "fusion": {"method": "average"},
            "labels": ["A", "B"],
            "template": "{text}\nIntent:",
        }
        bundle.write_ensemble(Ensemble.model_validate(manifest))
    tiny.lora(base, root / "adapters" / "new", seed=99, rank=4)
    return bundle.path


def loaded_on(service: Service, name: str) -> tuple[bool, dict[int, list[str]]]:
    told = service.get(f"/v1/ensembles/{name}").json()
    return told["pinned"], {each["version"]: each["loaded_on"] for each in told["versions"]}


def test_thirty_ensembles_over_five_places(tmp_path: Path) -> None:
    bundle = make_many(tmp_path)
    config = tmp_path / "config.yaml"
    config.write_text(CONFIG)
    names = [f"e{number}" for number in range(COUNT)]
    arguments = (bundle, "--config", config, "--adapter-root", tmp_path / "adapters")

    with serving(*arguments, log=tmp_path / "serve.log") as service:
        assert loaded_on(service, "e0") == (True, {1: ["engine/0"]})
        assert loaded_on(service, "e7") == (False, {1: []})

        def ask(name: str) -> httpx.Response:
            return service.post("/v1/predict", {"model": name, "input": "where is my card?"})

        def probabilities(answer: httpx.Response) -> Any:
            assert answer.status_code == 200, answer.text
            return answer.json()["data"][0]["probabilities"]["A"]

        with ThreadPoolExecutor(16) as pool:
            first = dict(zip(names, map(probabilities, pool.map(ask, names)), strict=True))
            again = [*names, *reversed(names)]
            for name, answer in zip(again, pool.map(ask, again), strict=True):
                assert answer.json()["model"] == f"{name}@1"
                assert probabilities(answer) == pytest.approx(first[name], abs=1e-5)
        assert len(set(first.values())) == COUNT, "adapters answer differently"

        body = {"members": {"a": (tmp_path / "adapters" / "new").as_uri()}}
        swapped = service.post("/v1/ensembles/e3/swap?wait=true", body)
        assert swapped.status_code == 200, swapped.text
        assert ask("e3").json()["model"] == "e3@2"
        assert ask("e3@1").json()["model"] == "e3@1"  # warm, and loaded again if it made room
        assert probabilities(ask("e3")) != pytest.approx(first["e3"], abs=1e-5)
        assert loaded_on(service, "e0")[1] == {1: ["engine/0"]}

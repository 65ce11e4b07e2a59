"""Which vectors `/v1/embeddings` gives, of an engine that is not started."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from serve.engine.interface import EmbedCall, Embeddings, EngineSettings
from serve.engine.loaded import LoadedVersion
from serve.engine.scoring.embedding import Embedder
from serve.errors import Refusal
from serve.fusion.fuse import Fusion
from serve.manifest import Ensemble, FusionSpec, Member
from tests.serve import tiny


class Pooler:
    """Stands for vLLM: notes how vectors are asked to be pooled."""

    def __init__(self) -> None:
        self.asked: list[Any] = []

    async def rows(self, texts: Any, towers: int) -> list[list[int]]:
        return [[1, 2, 3] for _ in texts]

    async def pool(self, rows: Any, adapters: Any, queue: Any, poolings: Any) -> Any:
        self.asked += poolings
        return [np.ones((len(rows), 4), np.float32)]


def loaded() -> LoadedVersion:
    ensemble = Ensemble(
        format=1,
        name="intents",
        version=1,
        task="classification",
        members=[Member(name="a", adapters=[])],
        fusion=FusionSpec(method="average"),
        labels=["x", "y"],
    )
    version: Any = None
    heads: Any = {"a": SimpleNamespace(pooling="cls")}
    return LoadedVersion(version, ensemble, (), Fusion(ensemble), heads, frozenset())


def no_lora(_: Any) -> Any:
    return SimpleNamespace(lora=None)


async def embed(base: Path, pooler: Any, member: str | None) -> Embeddings | Refusal:
    embedder = Embedder(pooler, EngineSettings(model=str(base), kind="encoder", adapter_slots=1))
    queue: Any = None
    return await embedder.embed(
        loaded(), EmbedCall("intents@1", ("a text",), "r", member), no_lora, queue
    )


@pytest.mark.parametrize(
    ("said", "pooling"),
    [
        ({"pooling_mode": "cls"}, "cls"),
        ({"pooling_mode": "lasttoken"}, "last"),
        ({"pooling_mode_mean_tokens": True}, "mean"),
        ({"pooling_mode": "max"}, None),
        ({"pooling_mode": ["cls", "mean"]}, None),
    ],
)
async def test_the_bases_vector_is_pooled_as_it_says_or_refused(
    tmp_path: Path, said: dict[str, Any], pooling: str | None
) -> None:
    base = tiny.encoder_base(tmp_path / "base")
    (base / "1_Pooling").mkdir()
    (base / "1_Pooling" / "config.json").write_text(json.dumps(said))
    pooler = Pooler()
    answer = await embed(base, pooler, None)
    if pooling is None:
        assert isinstance(answer, Refusal)
        assert answer.status == 400
        assert "1_Pooling/config.json pools by" in answer.message
        assert "Name a member" in answer.message
    else:
        assert isinstance(answer, Embeddings)
        assert pooler.asked == [pooling]


async def test_a_members_vector_is_given_however_the_base_pools(tmp_path: Path) -> None:
    base = tiny.encoder_base(tmp_path / "base")
    (base / "1_Pooling").mkdir()
    (base / "1_Pooling" / "config.json").write_text('{"pooling_mode": "max"}')
    pooler = Pooler()
    assert isinstance(await embed(base, pooler, "a"), Embeddings)
    assert pooler.asked == ["cls"]

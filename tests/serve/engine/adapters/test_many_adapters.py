"""An engine that keeps more adapters in host memory than it has slots answers as one with slots for all."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from serve.bundle import BaseSpec, Bundle
from serve.engine.interface import EngineSettings, PrepareError
from serve.manifest import Ensemble, FusionSpec, Member
from tests.serve import tiny
from tests.serve.engine.calls import BLOCK_BYTES, BLOCKS, ask, greedy, prompts, version
from tests.serve.engine.fused import Judge, averaged
from tests.serve.world import World, committed

pytestmark = [
    pytest.mark.engine,
    pytest.mark.slow,
    pytest.mark.asyncio(loop_scope="session"),
]

PAIRS = {"ab": ("a", "b"), "cd": ("c", "d"), "a": ("a",), "d": ("d",)}


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def crowded(models: dict[str, Path]) -> AsyncIterator[Any]:
    """Two slots, and four adapters in host memory."""
    from serve.engine.vllm_engine import VLLMEngine

    engine = await VLLMEngine.start(
        EngineSettings(
            model=str(models["base"]),
            kind="causal",
            adapter_slots=2,
            max_lora_rank=32,
            host_adapters=4,
            dtype="float32",
            arguments={
                "kv_cache_memory_bytes": BLOCKS * BLOCK_BYTES,
                "max_num_batched_tokens": 48,
                "max_num_seqs": 8,
            },
        )
    )
    for name, members in PAIRS.items():
        await engine.prepare(version(models, name, {each: each for each in members}))
    yield engine
    await engine.close()


async def check(engine: Any, judge: Judge, name: str, text: str, tokens: int = 8) -> None:
    members = PAIRS[name]
    answer = await ask(engine, greedy(text, tokens), name, return_members=True)
    merge = averaged([1 / len(members)] * len(members))
    judge.check(answer["choices"][0], [(each, text) for each in members], merge)


async def test_ensembles_that_do_not_fit_together_answer_all_at_once(
    crowded: Any, judge: Judge
) -> None:
    state = crowded.state()
    assert (state.adapter_slots, state.host_adapters, len(state.adapters)) == (2, 4, 4)
    work = [check(crowded, judge, name, text) for text in prompts(6, seed=3) for name in PAIRS]
    await asyncio.gather(*work)


async def test_adapters_come_and_go_while_others_run(
    crowded: Any, judge: Judge, models: dict[str, Path]
) -> None:
    """Each load takes a slot from another adapter, which gets a slot back later."""
    await crowded.release("cd@1")

    async def come_and_go() -> None:
        for _ in range(4):
            await crowded.release("d@1")
            await crowded.prepare(version(models, "d", {"d": "d"}))
            await check(crowded, judge, "d", "where is my card")

    running = [check(crowded, judge, "ab", text, 24) for text in prompts(8, seed=4)]
    await asyncio.gather(come_and_go(), *running)
    await crowded.prepare(version(models, "cd", {"c": "c", "d": "d"}))
    await check(crowded, judge, "cd", "where is my card")


async def test_an_ensemble_that_could_never_run_is_refused(
    crowded: Any, models: dict[str, Path]
) -> None:
    members = {each: each for each in "abc"}
    with pytest.raises(PrepareError, match="3 distinct LoRAs and the engine runs 2 at once"):
        await crowded.prepare(version(models, "abc", members))
    assert len(crowded.state().adapters) == 4


async def test_more_ensembles_than_there_is_room_for_answer_as_peft_does(
    crowded: Any, models: dict[str, Path], tmp_path: Path
) -> None:
    """Twelve adapters, two slots and four host adapters, under the real control plane, with a swap in between."""
    for name in PAIRS:
        await crowded.release(f"{name}@1")
    names = [f"e{number}" for number in range(12)]
    folders = {
        name: tiny.lora(models["base"], tmp_path / "adapters" / name, seed=50 + number, rank=8)
        for number, name in enumerate([*names, "new"])
    }
    judge = Judge(models["base"], {name: [folder] for name, folder in folders.items()})
    bundle = Bundle.create(tmp_path / "bundle", BaseSpec(path=str(models["base"])))
    for name in names:
        ensemble = Ensemble(
            format=1,
            name=name,
            version=1,
            task="generation",
            members=[Member(name="a", adapters=[bundle.add_adapter(name, folders[name])])],
            fusion=FusionSpec(method="average"),
        )
        bundle.write_ensemble(ensemble)
    world = World(tmp_path)
    world.bundles, world.slots = [bundle], 4
    world.options = {"pinned": ["e0"], "adapter_roots": [tmp_path / "adapters"]}

    async def one(name: str, model: str, text: str) -> None:
        async with world.engine_agents[0].using(model) as refusal:
            assert refusal is None
            answer = await ask(crowded, greedy(text, 6), model.removesuffix("@1"))
        judge.check(answer["choices"][0], [(name, text)], averaged([1.0]))

    try:
        await world.start(engines=0)
        await world.add_engine(crowded)
        assert list(crowded.state().versions) == ["e0@1"]
        for texts in (prompts(3, seed=5), prompts(3, seed=6)):
            work = [one(name, f"{name}@1", text) for text in texts for name in names]
            async with asyncio.timeout(120):
                await asyncio.gather(*work)
            state = crowded.state()
            assert "e0@1" in state.versions
            assert len(state.adapters) <= 4
        committed(await world.ask({"members": {"a": folders["new"].as_uri()}}, "e5"))
        assert "e5@2" in crowded.state().versions
    finally:
        await world.stop()

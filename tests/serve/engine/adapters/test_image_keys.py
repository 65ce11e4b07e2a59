"""What an engine does with adapters that change how images are read. vLLM is made up."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from serve.engine.interface import EngineSettings, PrepareError
from tests.serve import seeing

pytestmark = pytest.mark.engine


class Workers:
    """An engine with one worker, whose model has LoRA layers on some parts of the base alone."""

    def __init__(self, *, on_images: bool) -> None:
        self.loras: dict[int, str] = {}
        self.on_images = on_images
        self.vllm_config = SimpleNamespace(
            lora_config=SimpleNamespace(enable_tower_connector_lora=on_images)
        )
        self.input_processor = SimpleNamespace(
            _get_mm_identifier=lambda mm_hash, lora: (
                f"{lora.lora_name}:{mm_hash}" if lora else mm_hash
            )
        )

    async def add_lora(self, request: Any) -> None:
        self.loras[request.lora_int_id] = request.lora_name

    async def remove_lora(self, lora_id: int) -> None:
        del self.loras[lora_id]

    async def collective_rpc(self, method: str, args: tuple[int]) -> list[Any]:
        sees = self.loras[args[0]] in ("tower", "late")
        if method == "changes_images":
            return [sees]
        return [["model.vision_model.layer"] if sees and not self.on_images else []]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("keys")
    base = seeing.base("idefics3", root / "base")
    targets = seeing.TARGETS["idefics3"]
    return {
        "base": base,
        "late": seeing.lora(
            base, root / "late", targets["tower"], seed=1, rank=4, invocation=[5, 6]
        ),
        **{
            name: seeing.lora(base, root / name, targets[name], seed=1, rank=4)
            for name in ("language", "tower")
        },
    }


def pool(made: dict[str, Path], workers: Workers) -> Any:
    from transformers import AutoTokenizer

    from serve.engine.adapters.pool import AdapterPool
    from serve.prompting.reader import PromptReader

    settings = EngineSettings(model=str(made["base"]), kind="causal", adapter_slots=4)
    llm: Any = workers
    return AdapterPool(llm, settings, PromptReader(AutoTokenizer.from_pretrained(made["base"])))


async def test_one_key_stands_for_an_image_that_several_members_read_alike(
    made: dict[str, Path],
) -> None:
    workers = Workers(on_images=True)
    adapters = pool(made, workers)
    for name in ("language", "tower"):
        await adapters.acquire(name, name, str(made[name]))
    key = workers.input_processor._get_mm_identifier
    assert key("image", None) == "image"
    assert key("image", adapters.alone("language").lora) == "image"
    assert key("image", adapters.alone("tower").lora) == "tower:image"


async def test_an_engine_without_lora_on_images_refuses_it_and_says_what_to_do(
    made: dict[str, Path],
) -> None:
    workers = Workers(on_images=False)
    adapters = pool(made, workers)
    await adapters.acquire("language", "language", str(made["language"]))
    with pytest.raises(PrepareError, match=r'no module .* start with --engine .*": true}') as error:
        await adapters.acquire("tower", "tower", str(made["tower"]))
    assert "enable_tower_connector_lora" in str(error.value)
    assert [*workers.loras.values()] == ["language"]


async def test_an_activated_lora_that_changes_images_is_refused(made: dict[str, Path]) -> None:
    """Images stand before its invocation, where it must not act."""
    workers = Workers(on_images=True)
    adapters = pool(made, workers)
    with pytest.raises(PrepareError, match="an activated LoRA, and changes what reads images"):
        await adapters.acquire("late", "late", str(made["late"]))
    assert not workers.loras

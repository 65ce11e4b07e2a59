"""Under which key vLLM keeps what an image became: one for all members that read images as the base does.

Where LoRAs may change what reads images, vLLM keeps a copy for each LoRA, also for those that leave it alone: with four
members it would encode an image four times."""

from typing import Any

from vllm.lora.request import LoRARequest
from vllm.v1.engine.async_llm import AsyncLLM


class ImageKeys:
    """Replaces `InputProcessor._get_mm_identifier` of vLLM 0.32, behind the version guard in
    `vllm_hooks/arguments.py`."""

    def __init__(self, llm: AsyncLLM) -> None:
        self._own: set[str] = set()
        """Names of the LoRAs that change what reads images."""
        inputs: Any = llm.input_processor
        of_all = inputs._get_mm_identifier

        def identifier(mm_hash: str, lora_request: LoRARequest | None) -> str:
            changes = lora_request is not None and lora_request.lora_name in self._own
            key: str = of_all(mm_hash, lora_request if changes else None)
            return key

        inputs._get_mm_identifier = identifier

    def note(self, name: str, *, changes_images: bool) -> None:
        """Notes whether the LoRA of that name reads images in its own way. A name always stands for the same LoRA."""
        if changes_images:
            self._own.add(name)

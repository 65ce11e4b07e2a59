"""vLLM's LLaVA with LoRA on the vision tower, and without torchvision.

Three things differ from vLLM 0.32:

- Names. transformers 5 has no `vision_model` inside a LLaVA's tower, so PEFT's names have none, and neither have the
  weights of a LLaVA that transformers 5 saved. vLLM's tower still has it.
- Rows. By the strategy "default", the first row of an image runs through the tower and is dropped behind it: a CLIP's
  CLS, a SigLIP's first patch. vLLM does not count it.
- An import. vLLM's module takes one function of transformers' Pixtral from a file that needs torchvision. The same
  function stands beside the processor for Pillow."""

import importlib.util
import re
import sys
from typing import Any

from transformers.models.pixtral import image_processing_pil_pixtral

if importlib.util.find_spec("torchvision") is None:
    sys.modules.setdefault(
        "transformers.models.pixtral.image_processing_pixtral", image_processing_pil_pixtral
    )

from vllm.model_executor.models.llava import LlavaForConditionalGeneration
from vllm.model_executor.models.utils import WeightsMapper

_NO_INNER_NAME = re.compile(r"^(?:model\.)?vision_tower\.(?!vision_model\.)")


class Llava(LlavaForConditionalGeneration):
    """LLaVA over a CLIP or SigLIP."""

    hf_to_vllm_mapper = LlavaForConditionalGeneration.hf_to_vllm_mapper | WeightsMapper(
        orig_to_new_regex={_NO_INNER_NAME: "vision_tower.vision_model."}
    )
    """Also maps the names of an adapter's modules."""

    def get_mm_lora_token_counts(
        self, *, modality: str, mm_kwargs: Any, num_mm_embeds: int
    ) -> tuple[int, int]:
        config = self.config
        if config.vision_feature_select_strategy != "default":
            return num_mm_embeds, num_mm_embeds
        vision = config.vision_config
        patches = (vision.image_size // vision.patch_size) ** 2
        clip = vision.model_type == "clip_vision_model"
        embeds = patches if clip else patches - 1
        images = -(-num_mm_embeds // embeds)
        return num_mm_embeds + images, num_mm_embeds

"""vLLM's CLIP and SigLIP with LoRA on both towers, on what joins them, and on the projections.

vLLM 0.32 takes no LoRA in its own models of them. Three things tell it which adapter a row belongs to:

- `get_mm_mapping`: which modules read texts, which read images, and which read one row an image. A module's part is the
  longest prefix that its name starts with. There may be one prefix only for the modules that read texts.
- `get_mm_lora_token_counts`: how many rows one image has in the tower and behind it. With a wrong number, one member's
  LoRA is put on another member's image.
- `ReplicatedLinear` in place of `nn.Linear`, which LoRA cannot wrap."""

from typing import Any

from vllm.config import VllmConfig
from vllm.model_executor.layers.linear import ReplicatedLinear
from vllm.model_executor.models.clip import CLIPEmbeddingModel
from vllm.model_executor.models.interfaces import SupportsLoRA
from vllm.model_executor.models.module_mapping import MultiModelKeys
from vllm.model_executor.models.siglip import SiglipEmbeddingModel


class ClipTowers(CLIPEmbeddingModel, SupportsLoRA):
    """CLIP: an image has a row for each patch and one more (CLS) in the tower, and one behind it."""

    embedding_modules: dict[str, str] = {}  # noqa: RUF012 - vLLM's own declaration
    supports_tower_connector_lora = True

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        self.text_projection = _linear(self.text_embed_dim, self.projection_dim, bias=False)
        self.visual_projection = _linear(self.vision_embed_dim, self.projection_dim, bias=False)

    def get_mm_mapping(self) -> MultiModelKeys:
        return MultiModelKeys.from_string_field(
            language_model="text_",  # the tower and its projection
            connector="visual_projection",
            tower_model="vision_model",
        )

    def get_mm_lora_token_counts(
        self, *, modality: str, mm_kwargs: Any, num_mm_embeds: int
    ) -> tuple[int, int]:
        return num_mm_embeds * (_patches(self.config) + 1), num_mm_embeds


class SiglipTowers(SiglipEmbeddingModel, SupportsLoRA):
    """SigLIP: an image has a row for each patch in the tower, and one in the head that pools them."""

    embedding_modules: dict[str, str] = {}  # noqa: RUF012 - vLLM's own declaration
    supports_tower_connector_lora = True

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        self.text_model.head = _linear(self.text_embed_dim, self.text_projection_size, bias=True)

    def get_mm_mapping(self) -> MultiModelKeys:
        return MultiModelKeys.from_string_field(
            language_model="text_model", connector="vision_model.head", tower_model="vision_model"
        )

    def get_mm_lora_token_counts(
        self, *, modality: str, mm_kwargs: Any, num_mm_embeds: int
    ) -> tuple[int, int]:
        return num_mm_embeds * _patches(self.config), num_mm_embeds


def _linear(inputs: int, outputs: int, *, bias: bool) -> ReplicatedLinear:
    return ReplicatedLinear(inputs, outputs, bias=bias, return_bias=False)


def _patches(config: Any) -> int:
    """Returns how many patches an image has: the tower sees it in one size."""
    vision = config.vision_config
    side: int = vision.image_size // vision.patch_size
    return side * side

"""Adds Choir's models to vLLM's registry.

`register` is the entry point `vllm.general_plugins` of the package, so vLLM calls it in each of its processes. Choir
calls it too where it configures vLLM and in each worker, for an installation that has not been renewed since."""

from vllm import ModelRegistry

from serve.base.architectures import BERT_BACKBONE, DISTILBERT_BACKBONE
from serve.base.two_towers import CLIP, SIGLIP
from serve.base.vision_language import LLAVA
from serve.engine.vllm_hooks.backbones import BertBackbone, DistilBertBackbone
from serve.engine.vllm_hooks.two_towers import ClipTowers, SiglipTowers


def register() -> None:
    """Registers the models in this process. May be called again."""
    for name, model in {
        BERT_BACKBONE: BertBackbone,
        DISTILBERT_BACKBONE: DistilBertBackbone,
        CLIP: ClipTowers,
        SIGLIP: SiglipTowers,
        LLAVA: "serve.engine.vllm_hooks.llava:Llava",  # by name: what it imports takes long
    }.items():
        if name not in ModelRegistry.models:
            ModelRegistry.register_model(name, model)

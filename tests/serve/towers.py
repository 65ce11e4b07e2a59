"""Tiny but real models with a tower for images and one for texts, adapters over them, and what PEFT answers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModel,
    AutoProcessor,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPProcessor,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipImageProcessorPil,
    SiglipModel,
    SiglipProcessor,
)

from tests.serve.tiny import CORPUS

Family = Literal["clip", "siglip"]

TARGETS: dict[Family, dict[str, str | list[str]]] = {
    "clip": {
        "vision": r".*vision_model\.encoder.*\.(q_proj|v_proj|out_proj|fc1|fc2)|visual_projection",
        "text": r".*text_model\.encoder.*\.(q_proj|k_proj|v_proj|fc1)|text_projection",
        "both": ["q_proj", "v_proj", "k_proj", "out_proj", "fc1", "fc2", "visual_projection", "text_projection"],
    },
    "siglip": {
        "vision": r".*vision_model\.encoder.*\.(q_proj|v_proj|out_proj|fc1|fc2)|vision_model\.head\.mlp\.fc[12]",
        "text": r".*text_model\.encoder.*\.(q_proj|k_proj|v_proj|fc1)|text_model\.head",
        "both": ["q_proj", "v_proj", "k_proj", "fc1", "fc2"],
    },
}  # fmt: skip
"""Family -> name of an adapter -> the modules that it changes, as PEFT takes them."""
SIDE, PATCH = 32, 8


def base(family: Family, folder: Path) -> Path:
    """A CLIP or SigLIP of about 0.3M parameters whose weights are large, with its processor."""
    torch.manual_seed(0)
    if family == "clip":
        tokens = _tokenizer(["<|startoftext|>", "<|endoftext|>"], "<|startoftext|>")
        own = CLIPConfig(
            projection_dim=96, text_config=_text(tokens, 77), vision_config=_vision(128)
        )
        model = CLIPModel(own)
        size = {"height": SIDE, "width": SIDE}
        images = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=size)
        processor = CLIPProcessor(images, tokens)
    else:
        tokens = _tokenizer(["</s>"], None)
        text = {**_text(tokens, 24), "projection_size": 64}
        model = SiglipModel(SiglipConfig(text_config=text, vision_config=_vision(64)))
        images = SiglipImageProcessorPil(size={"height": SIDE, "width": SIDE})
        processor = SiglipProcessor(images, tokens)
    for name, weight in model.named_parameters():
        if weight.dim() > 1 or "class_embedding" in name:
            torch.nn.init.normal_(weight, std=0.15)
        elif "bias" in name:
            torch.nn.init.normal_(weight, std=0.05)
        elif name == "logit_scale":
            torch.nn.init.constant_(weight, 2.5)  # a trained one tells labels apart
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def _tokenizer(special: list[str], start: str | None) -> PreTrainedTokenizerFast:
    tokens = Tokenizer(models.BPE())
    tokens.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokens.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=480,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokens.train_from_iterator(CORPUS, trainer)
    tokens.add_special_tokens(special)  # last: vLLM takes token 0 for images
    end = special[-1]
    tokens.post_processor = processors.TemplateProcessing(
        single=f"{start + ' ' if start else ''}$A {end}",
        special_tokens=[(each, tokens.token_to_id(each)) for each in special],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokens, bos_token=start, eos_token=end, pad_token=end
    )


def _text(tokens: PreTrainedTokenizerFast, positions: int) -> dict[str, Any]:
    return {
        "vocab_size": len(tokens),
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": positions,
        "eos_token_id": tokens.eos_token_id,
        "pad_token_id": tokens.pad_token_id,
        "bos_token_id": tokens.bos_token_id or tokens.eos_token_id,
    }


def _vision(hidden: int) -> dict[str, Any]:
    return {
        "hidden_size": hidden,
        "intermediate_size": 192,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": SIDE,
        "patch_size": PATCH,
    }


def lora(
    base: Path,
    folder: Path,
    targets: str | Sequence[str],
    *,
    seed: int,
    rank: int,
    labels: int | None = 3,
) -> Path:
    """A LoRA with a head over the vectors of both towers; without one if there are no `labels`."""
    torch.manual_seed(seed)
    given = targets if isinstance(targets, str) else list(targets)
    model = AutoModel.from_pretrained(base, dtype=torch.float32)
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=given)
    adapted = get_peft_model(model, config)
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.15)
    adapted.save_pretrained(folder)
    if labels is None:
        return folder
    head = {"weight": torch.randn(labels, width(model)) * 0.1, "bias": torch.randn(labels)}
    save_file(head, folder / "head.safetensors")
    return folder


def width(model: Any) -> int:
    clip = model.config.model_type == "clip"
    found: int = model.config.projection_dim if clip else model.config.text_config.projection_size
    return found


def pictures(count: int, seed: int = 0) -> list[Image.Image]:
    random = np.random.default_rng(seed)
    sizes = random.integers(24, 64, (count, 2))
    return [
        Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8))
        for height, width in sizes
    ]


def texts(count: int, seed: int = 0) -> list[str]:
    random = np.random.default_rng(seed)
    words = " ".join(CORPUS[:6]).split()
    return [" ".join(random.choice(words, 1 + number % 9)) for number in range(count)]


class Reference:
    """What transformers and PEFT answer, in float32."""

    def __init__(self, base: Path, adapter: Path | None, context: int = 24) -> None:
        """`context`: the positions of a SigLIP, to which its texts are filled up."""
        model = AutoModel.from_pretrained(base, dtype=torch.float32)
        if adapter is not None:
            model = PeftModel.from_pretrained(model, adapter).get_base_model()
        self._model = model.eval()
        self._filled = {"padding": "max_length", "max_length": context}
        self._processor = AutoProcessor.from_pretrained(base)
        head = adapter / "head.safetensors" if adapter else None
        self._head = load_file(head) if head and head.is_file() else None

    @torch.no_grad()
    def vector(self, given: Image.Image | str) -> torch.Tensor:
        """[width]; SigLIP's texts are filled up to all positions, without a mask, as they were in its training."""
        if isinstance(given, str):
            filled = self._filled if self._siglip else {}
            ids = self._processor(text=[given], return_tensors="pt", **filled)["input_ids"]
            found = self._model.get_text_features(input_ids=ids)
        else:
            found = self._model.get_image_features(
                **self._processor(images=[given], return_tensors="pt")
            )
        vectors: torch.Tensor = getattr(found, "pooler_output", found)
        return vectors[0]

    def probabilities(self, given: Image.Image | str) -> list[float]:
        """What the adapter's head says: [labels]."""
        assert self._head is not None
        scores = self._head["weight"] @ self.vector(given) + self._head["bias"]
        return [float(each) for each in scores.double().softmax(0)]

    @torch.no_grad()
    def zero_shot(self, given: Image.Image | str, labels: Sequence[Sequence[str]]) -> list[float]:
        """Which label's texts are closest: [labels]. Of one text each, that is what `logits_per_image` says."""
        texts = [
            torch.stack([self.vector(text) / self.vector(text).norm() for text in each]).mean(0)
            for each in labels
        ]
        vector = self.vector(given)
        cosines = [vector @ text / (vector.norm() * text.norm()) for text in texts]
        scores = self._model.logit_scale.exp() * torch.stack(cosines)
        return [float(each) for each in scores.flatten().double().softmax(0)]

    @torch.no_grad()
    def own_zero_shot(self, image: Image.Image, texts: Sequence[str]) -> list[float]:
        """The softmax of the model's own `logits_per_image` [texts]."""
        filled = self._filled if self._siglip else {"padding": True}
        ids = self._processor(text=list(texts), return_tensors="pt", **filled)
        pixels = self._processor(images=[image], return_tensors="pt")["pixel_values"]
        mask = {} if self._siglip else {"attention_mask": ids["attention_mask"]}
        said = self._model(input_ids=ids["input_ids"], pixel_values=pixels, **mask)
        return [float(each) for each in said.logits_per_image[0].double().softmax(0)]

    @property
    def _siglip(self) -> bool:
        return bool(self._model.config.model_type == "siglip")

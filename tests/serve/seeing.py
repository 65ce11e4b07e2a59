"""Tiny but real models that write about images, adapters over them, and what transformers and PEFT answer."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from peft import (
    LoraConfig,
    PeftConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptTuningConfig,
    get_peft_model,
)
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedTokenizerFast

from tests.serve.tiny import CORPUS

Family = Literal["idefics3", "llava", "llava-siglip"]
"""`llava` is over a CLIP."""

CHAT_TEMPLATE = (
    "{% for m in messages %}{{ m['role'] | upper }}: {% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for c in m['content'] %}{% if c['type'] == 'image' %}<image>\n{% else %}{{ c['text'] }}{% endif %}{% endfor %}"
    "{% endif %} {% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
_LLAVA: dict[str, str | list[str]] = {
    "language": r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|down_proj)",
    "tower": r".*vision_tower.*\.(q_proj|v_proj|out_proj|fc1|fc2)",
    "connector": r".*multi_modal_projector\.linear_[12]",
    "both": ["q_proj", "v_proj"],
}
TARGETS: dict[Family, dict[str, str | list[str]]] = {
    "idefics3": {
        "language": r".*text_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|down_proj)",
        "tower": r".*vision_model.*\.(q_proj|v_proj|out_proj|fc1|fc2)",
        "connector": r".*connector\.modality_projection\.proj",
        "both": ["q_proj", "v_proj"],
    },
    "llava": _LLAVA,
    "llava-siglip": _LLAVA,
}
"""Family -> name of an adapter -> the modules that it changes, as PEFT takes them. `both`: language and tower."""
SIDE, PATCH = 32, 8


def base(family: Family, folder: Path, *, published: bool = True) -> Path:
    """A model of about 0.5M parameters whose weights are large, with its processor.

    `published`: with the names of the weights that published LLaVAs have; else with those of transformers 5."""
    special = [
        "<|end|>",
        "<image>",
        "<fake_token_around_image>",
        "<global-img>",
        "<end_of_utterance>",
    ]
    special += [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
    tokens = _tokenizer([*special, "<pad>"])
    torch.manual_seed(0)
    model = _idefics3(tokens) if family == "idefics3" else _llava(tokens, family)
    for name, weight in model.named_parameters():
        if weight.dim() > 1 or "class_embedding" in name:
            torch.nn.init.normal_(weight, std=0.15)
        elif "bias" in name:
            torch.nn.init.normal_(weight, std=0.05)
    with torch.no_grad():  # a random model must not write what transformers takes for images
        model.lm_head.weight[_id(tokens, "<image>")] = 0
    model.generation_config.pad_token_id = _id(tokens, "<pad>")
    model.save_pretrained(folder)
    if family != "idefics3" and published:
        file = folder / "model.safetensors"
        renamed = {
            re.sub(r"^vision_tower\.", "vision_tower.vision_model.", name): weight
            for name, weight in load_file(file).items()
        }
        save_file(renamed, file, metadata={"format": "pt"})
    _processor(family, tokens).save_pretrained(folder)
    return folder


def _idefics3(tokens: PreTrainedTokenizerFast) -> Any:
    return transformers.Idefics3ForConditionalGeneration(
        transformers.Idefics3Config(
            image_token_id=_id(tokens, "<image>"),
            scale_factor=2,
            pad_token_id=_id(tokens, "<pad>"),
            vision_config=_vision(layers=2),
            text_config=_text(tokens),
        )
    )


def _llava(tokens: PreTrainedTokenizerFast, family: Family) -> Any:
    clip = {"model_type": "clip_vision_model", "projection_dim": 64}
    tower = clip if family == "llava" else {"model_type": "siglip_vision_model"}
    return transformers.LlavaForConditionalGeneration(
        transformers.LlavaConfig(
            image_token_index=_id(tokens, "<image>"),
            image_seq_length=(SIDE // PATCH) ** 2 - int(family != "llava"),
            vision_feature_layer=-2,
            vision_config={**tower, **_vision(3)},
            text_config=_text(tokens),
        )
    )


def _processor(family: Family, tokens: PreTrainedTokenizerFast) -> Any:
    if family == "idefics3":
        images = transformers.Idefics3ImageProcessorPil(
            size={"longest_edge": 2 * SIDE},
            max_image_size={"longest_edge": SIDE},
            do_image_splitting=True,
        )
        return transformers.Idefics3Processor(
            images, tokens, image_seq_len=4, chat_template=CHAT_TEMPLATE
        )
    size = {"height": SIDE, "width": SIDE}
    images = (
        transformers.CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=size)
        if family == "llava"
        else transformers.SiglipImageProcessorPil(size=size)
    )
    return transformers.LlavaProcessor(
        images,
        tokens,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        chat_template=CHAT_TEMPLATE,
        num_additional_image_tokens=int(family == "llava"),
    )


def _tokenizer(special: list[str]) -> PreTrainedTokenizerFast:
    tokens = Tokenizer(models.BPE())
    tokens.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokens.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=480,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokens.train_from_iterator(CORPUS, trainer)
    tokens.add_special_tokens(special)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokens, eos_token=special[0], pad_token=special[-1]
    )


def _id(tokens: PreTrainedTokenizerFast, token: str) -> int:
    found = tokens.convert_tokens_to_ids(token)
    assert isinstance(found, int)
    return found


def _vision(layers: int) -> dict[str, Any]:
    return {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "image_size": SIDE,
        "patch_size": PATCH,
    }


def _text(tokens: PreTrainedTokenizerFast) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "vocab_size": len(tokens),
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "eos_token_id": _id(tokens, "<|end|>"),
        "bos_token_id": _id(tokens, "<|end|>"),
        "pad_token_id": _id(tokens, "<pad>"),
    }


def lora(
    base: Path,
    folder: Path,
    targets: str | Sequence[str],
    *,
    seed: int,
    rank: int,
    invocation: Sequence[int] | None = None,
) -> Path:
    """A LoRA that changes what the base answers; an activated one if there is an `invocation`."""
    config = LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        target_modules=targets if isinstance(targets, str) else list(targets),
        task_type=None if invocation is None else "CAUSAL_LM",
        alora_invocation_tokens=None if invocation is None else list(invocation),
    )
    return _adapter(base, folder, seed, config)


def prefix(base: Path, folder: Path, *, seed: int, tokens: int) -> Path:
    """Prefix tuning."""
    return _adapter(
        base, folder, seed, PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=tokens)
    )


def prompt(base: Path, folder: Path, *, seed: int, tokens: int) -> Path:
    """Prompt tuning."""
    return _adapter(
        base, folder, seed, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=tokens)
    )


def _adapter(base: Path, folder: Path, seed: int, config: PeftConfig) -> Path:
    model = AutoModelForImageTextToText.from_pretrained(base, dtype=torch.float32)
    torch.manual_seed(seed)
    adapted = get_peft_model(model, config)
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.15)
    adapted.save_pretrained(folder)
    return folder


class Reference:
    """What transformers and PEFT answer, in float32."""

    def __init__(self, base: Path, adapter: Path | None) -> None:
        self.processor = AutoProcessor.from_pretrained(base)
        model = AutoModelForImageTextToText.from_pretrained(base, dtype=torch.float32)
        self.model = (PeftModel.from_pretrained(model, adapter) if adapter else model).eval()

    def inputs(self, prompt: str, images: Sequence[Image.Image]) -> dict[str, torch.Tensor]:
        """The processor's tensors of a prompt with its images' tokens."""
        found = dict(self.processor(text=prompt, images=list(images) or None, return_tensors="pt"))
        found.pop("token_type_ids", None)
        return found

    def chat(self, *turns: tuple[str, str, int]) -> str:
        """The prompt of a chat. A turn is a role, its text, and how many images stand before it."""
        messages = [
            {
                "role": role,
                "content": [*[{"type": "image"}] * images, {"type": "text", "text": text}],
            }
            for role, text, images in turns
        ]
        prompt: str = self.processor.apply_chat_template(messages, add_generation_prompt=True)
        return prompt

    @torch.no_grad()
    def log_probs(
        self, prompt: str, images: Sequence[Image.Image], tokens: Sequence[int]
    ) -> torch.Tensor:
        """[T, V] at every position of `tokens`, each after the prompt and the ones before."""
        inputs = self.inputs(prompt, images)
        ids = inputs["input_ids"]
        behind = torch.tensor([list(tokens[:-1])], dtype=ids.dtype)
        inputs["input_ids"] = torch.cat([ids, behind], dim=1)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        logits = self.model(**inputs).logits[0, -len(tokens) :]
        found: torch.Tensor = logits.double().log_softmax(-1)
        return found

    def probabilities(
        self, prompt: str, images: Sequence[Image.Image], labels: Sequence[str]
    ) -> list[float]:
        """Softmax over the labels of the mean of their tokens' log-probabilities. None may merge with the prompt."""
        read = self.processor.tokenizer
        means = []
        for label in labels:
            tokens = read(label, add_special_tokens=False)["input_ids"]
            rows = self.log_probs(prompt, images, tokens)
            means.append(rows[torch.arange(len(tokens)), torch.tensor(tokens)].mean())
        return [float(each) for each in torch.stack(means).softmax(0)]

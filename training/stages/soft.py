"""Soft adapters, by PEFT: prefix tuning, prompt tuning and P-tuning."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import (
    PeftConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    TaskType,
    get_peft_model,
    initialize_kv_prefix_from_past_key_values,
)
from safetensors.torch import load_file

from training.recipe import PrefixStage, PromptStage, PTuningStage, SoftStage


def with_virtual_tokens(model: Any, stage: SoftStage, tokenizer: Any) -> PeftModel:
    """Freeze `model` and put virtual tokens before its prompt.

    Without an MLP, the virtual tokens start as real tokens: random numbers are far from all that the model has seen.
    """
    if isinstance(stage, PTuningStage):
        return get_peft_model(
            model,
            PromptEncoderConfig(
                task_type=TaskType.CAUSAL_LM,
                num_virtual_tokens=stage.virtual_tokens,
                encoder_hidden_size=stage.encoder_hidden,
            ),
        )
    if isinstance(stage, PromptStage):
        return _prompt(model, stage, tokenizer)
    return _prefix(model, stage, tokenizer)


def continued(model: Any, folder: Path) -> PeftModel:
    """Put the virtual tokens in `folder` before the prompt of `model`, to train them further. PEFT would load them for
    inference only."""
    config = PeftConfig.from_pretrained(str(folder))
    config.inference_mode = False
    soft = get_peft_model(model, config)
    tokens = load_file(folder / "adapter_model.safetensors")["prompt_embeddings"]
    soft.prompt_encoder[soft.active_adapter].embedding.weight.data.copy_(tokens)
    return soft


def _prompt(model: Any, stage: PromptStage, tokenizer: Any) -> PeftModel:
    start = model.get_input_embeddings()(_tokens(stage, tokenizer, model)).detach().clone()
    config = PromptTuningConfig(
        task_type=TaskType.CAUSAL_LM, num_virtual_tokens=stage.virtual_tokens
    )
    soft = get_peft_model(model, config)
    soft.prompt_encoder[soft.active_adapter].embedding.weight.data.copy_(start)
    return soft


def _prefix(model: Any, stage: PrefixStage, tokenizer: Any) -> PeftModel:
    start = None
    if stage.projection is None:
        ids = _tokens(stage, tokenizer, model).unsqueeze(0)
        with torch.no_grad():
            start = model(input_ids=ids, use_cache=True).past_key_values
    soft = get_peft_model(
        model,
        PrefixTuningConfig(
            task_type=TaskType.CAUSAL_LM,
            num_virtual_tokens=stage.virtual_tokens,
            prefix_projection=stage.projection is not None,
            encoder_hidden_size=stage.projection,
        ),
    )
    if start is not None:
        initialize_kv_prefix_from_past_key_values(soft, past_key_values=start)
    return soft


def _tokens(stage: PrefixStage | PromptStage, tokenizer: Any, model: Any) -> torch.Tensor:
    """Return the token ids [virtual tokens] to start from: those of `init`, repeated as needed, or random ones that are
    not special tokens."""
    if stage.init is not None:
        ids: Sequence[int] = tokenizer(stage.init, add_special_tokens=False)["input_ids"]
        repeated = [*ids] * (stage.virtual_tokens // len(ids) + 1)
        return torch.tensor(repeated[: stage.virtual_tokens])
    special = set(tokenizer.all_special_ids)
    known = [token for token in range(model.config.vocab_size) if token not in special]
    return torch.tensor(known)[torch.randint(len(known), (stage.virtual_tokens,))]

"""Converts a language model from GGUF, the format of llama.cpp, into a folder of transformers."""

from pathlib import Path

import torch
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig


def convert(file: Path, target: Path) -> None:
    """Writes a GGUF's weights as safetensors into the folder `target`, with configuration, tokenizer and chat template.

    The weights are rounded to bfloat16, in which an engine holds them by default: so members are trained over what is
    served. Needs the package `gguf`. Written for SmolLM2: the tokenizer's split of texts into words is that model's.
    """
    read = AutoModelForCausalLM.from_pretrained(
        file.parent,
        gguf_file=file.name,
        dtype=torch.float32,
        quantization_config=GgufConfig(dequantize=True),
    )
    # A fresh model takes the weights, because transformers saves none that still knows of GGUF.
    plain = AutoModelForCausalLM.from_config(read.config, dtype=torch.bfloat16)
    plain.load_state_dict(read.state_dict())
    plain.generation_config = read.generation_config
    plain.save_pretrained(target)
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    # In GGUF the split has only a name ("smollm"), which transformers does not read: each digit is a word.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.save_pretrained(target)

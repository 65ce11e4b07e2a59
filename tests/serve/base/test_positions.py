"""How long a text may be, against transformers' own models."""

from typing import Any

import pytest

from serve.base.positions import longest_text


@pytest.mark.parametrize(
    "family", ["Bert", "Roberta", "XLMRoberta", "Camembert", "MPNet", "DistilBert", "Electra", "ModernBert"]
)  # fmt: skip
def test_a_text_may_be_as_long_as_transformers_has_positions_for(family: str) -> None:
    import torch
    import transformers

    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 1, "vocab_size": 16, "max_position_embeddings": 12}
    special = {
        "pad_token_id": 1,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "cls_token_id": 0,
        "sep_token_id": 2,
    }
    own = {"dim": 8, "hidden_dim": 8, "n_layers": 1, "n_heads": 1} if family == "DistilBert" else {}
    config = getattr(transformers, f"{family}Config")(**sizes, **heads, **special, **own)
    model = getattr(transformers, f"{family}Model")(config).eval()
    longest = longest_text(config.to_dict())

    def read(tokens: int) -> None:
        model(input_ids=torch.full((1, tokens), 5), attention_mask=torch.ones(1, tokens))

    read(longest)
    if family != "ModernBert":  # rotary positions go on
        with pytest.raises((IndexError, RuntimeError)):
            read(longest + 1)


@pytest.mark.parametrize(
    ("config", "longest"),
    [
        ({"max_position_embeddings": 2048}, 2048),
        ({"n_positions": 1024}, 1024),
        ({"text_config": {"max_position_embeddings": 512}, "max_position_embeddings": 4}, 512),
        ({"max_position_embeddings": 100, "rope_scaling": {"type": "linear", "factor": 4.0}}, 400),
        (
            {"max_position_embeddings": 100, "rope_parameters": {"rope_type": "yarn", "factor": 4}},
            100,
        ),
        (
            {
                "max_position_embeddings": 131072,
                "original_max_position_embeddings": 4096,
                "rope_scaling": {"rope_type": "longrope"},
            },
            4096,
        ),
        ({"model_type": "xlm-roberta", "max_position_embeddings": 514}, 512),
        ({}, 2048),
    ],
)
def test_a_config_says_how_long_a_text_may_be(config: dict[str, Any], longest: int) -> None:
    assert longest_text(config) == longest

"""The layer that may stand before a head, in `head.safetensors`: what it computes, against torch, and refusals."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers.activations import ACT2FN

from serve.adapter import AdapterError, Head, inspect_adapter
from serve.adapter.head.layers import ACTIVATIONS, LayerNorm
from tests.serve.conftest import HIDDEN

WIDTH = 8


def written(folder: Path, *, towers: bool = False, **metadata: str) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {
        "hidden_weight": (WIDTH, HIDDEN),
        "hidden_bias": (WIDTH,),
        "weight": (3, WIDTH * (4 if towers else 1)),
        "bias": (3,),
    }
    tensors = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    save_file(tensors, folder / "head.safetensors", metadata=metadata or None)
    return tensors


@pytest.mark.parametrize("activation", sorted(set(ACTIVATIONS) - {"identity"}))
def test_a_hidden_layer_computes_what_torch_computes(tmp_path: Path, activation: str) -> None:
    head = written(tmp_path, activation=activation, normalize="true", pooling="cls")
    pooled = torch.randn(5, HIDDEN, generator=torch.Generator().manual_seed(1))
    inner = ACT2FN[activation](pooled @ head["hidden_weight"].T + head["hidden_bias"])
    inner = torch.nn.functional.normalize(inner, dim=-1)
    expected = inner @ head["weight"].T + head["bias"]
    read = Head.read(tmp_path)
    assert read.pooling == "cls"
    np.testing.assert_allclose(read.scores(pooled.numpy()), expected, atol=1e-5)


def test_each_text_of_a_pair_passes_the_hidden_layer(tmp_path: Path) -> None:
    head = written(tmp_path, towers=True, activation="identity", pair="towers")
    both = torch.randn(2, 5, HIDDEN, generator=torch.Generator().manual_seed(1))
    u, v = both @ head["hidden_weight"].T + head["hidden_bias"]
    expected = torch.cat([u, v, (u - v).abs(), u * v], dim=-1) @ head["weight"].T + head["bias"]
    found = Head.read(tmp_path).scores(both[0].numpy(), both[1].numpy())
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_a_layer_norm_computes_what_torch_computes() -> None:
    values, weight, bias = torch.randn(4, 6), torch.randn(6), torch.randn(6)
    expected = torch.nn.functional.layer_norm(values, (6,), weight, bias, 1e-5)
    found = LayerNorm(weight.numpy(), bias.numpy(), 1e-5)(values.numpy())
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_head_says_what_it_reads(encoder_base, causal_base, make_adapter, tmp_path):
    adapter = make_adapter(encoder_base)
    folder = adapter.path

    def inspect(base=encoder_base):
        return inspect_adapter(folder, base=base, base_kind="encoder", head_rows=3).head

    written(folder, activation="tanh", pooling="last")
    shape = inspect()
    assert (shape.labels, shape.hidden, shape.pooling) == (3, HIDDEN, "last")
    for metadata, reason in (
        ({}, "'activation' in head.safetensors belongs to a hidden layer"),
        ({"activation": "swish-9"}, "'activation' .* must be one of gelu"),
        ({"activation": "tanh", "pooling": "max"}, "'pooling' .* must be one of mean, cls, last"),
    ):
        written(folder, **metadata)
        with pytest.raises(AdapterError, match=reason):
            inspect()
    sound = written(folder, activation="tanh")
    for name, reason in (
        ("hidden_bias", "must hold 'weight' and 'bias'"),
        ("hidden_weight", "must hold 'weight' and 'bias'"),
    ):
        rest = {key: value for key, value in sound.items() if key != name}
        save_file(rest, folder / "head.safetensors", metadata={"activation": "tanh"})
        with pytest.raises(AdapterError, match=reason):
            inspect()
    save_file(
        sound | {"hidden_weight": torch.zeros(WIDTH + 1, HIDDEN)},
        folder / "head.safetensors",
        metadata={"activation": "tanh"},
    )
    with pytest.raises(AdapterError, match="hidden layer of the head must have a weight"):
        inspect()
    adapter.add_head(activation="tanh")
    with pytest.raises(AdapterError, match="belongs to a hidden layer"):
        inspect()


def test_over_a_causal_base_a_head_reads_the_last_token(causal_base, make_adapter):
    adapter = make_adapter(causal_base)
    adapter.add_head(pooling="last")
    inspect_adapter(adapter.path, base=causal_base, base_kind="encoder", head_rows=3)
    adapter.add_head(pooling="mean")
    with pytest.raises(AdapterError, match="over a causal model only 'last' is served"):
        inspect_adapter(adapter.path, base=causal_base, base_kind="encoder", head_rows=3)

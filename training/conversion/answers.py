"""What a model answers to sample texts, to say how far a converted adapter is from what it was made of."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from serve.base.side_files import read_tokenizer

SAMPLES = (
    "Where is my parcel? It should have arrived two days ago.",
    "The quick brown fox jumps over the lazy dog.",
    "1, 2, 3, 5, 8, 13",
    "Please write a short reply to this message:",
)
_TOKENS = 256
"""Longer samples are cut."""
_ROUNDING = 1e-4
"""Answers that are closer are equal: probabilities by this difference, larger vectors by this share of their values."""


def sample_ids(base: Path, texts: Sequence[str], vocabulary: int) -> list[list[int]]:
    """Returns the token ids of the samples; of a base without a tokenizer, ids that stand for none."""
    try:
        tokenizer = read_tokenizer(str(base))
    except (OSError, ValueError):
        return [
            [(7 * place + 3 * row + 1) % vocabulary for place in range(6 + 3 * row)]
            for row in range(len(texts))
        ]
    ids = [tokenizer(text)["input_ids"][:_TOKENS] for text in texts]
    return [each for each in ids if each]


@torch.inference_mode()
def answers(model: Any, rows: Sequence[Sequence[int]]) -> torch.Tensor:
    """Returns the probabilities of labels, or of each next token, for all rows one after another [places, labels]; of a
    model without such a head, the vectors of all tokens."""
    found = []
    for ids in rows:
        out = model.eval()(input_ids=torch.tensor([list(ids)]))
        logits = getattr(out, "logits", None)
        if logits is None:
            found.append(out.last_hidden_state[0].double())
        else:
            found.append(logits.double().softmax(-1).reshape(-1, logits.shape[-1]))
    return torch.cat(found)


def difference(one: torch.Tensor, other: torch.Tensor) -> float:
    """Returns the largest absolute difference of two models' answers."""
    return float((one - other).abs().max())


def equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Returns whether two models' answers differ by rounding alone."""
    return difference(one, other) <= _ROUNDING * max(1.0, float(one.abs().max()))

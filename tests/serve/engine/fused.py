"""The answers of PEFT and transformers, merged token by token in float64. It uses nothing of serve.fusion."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.serve import tiny

TIE = 1e-5

Merge = Callable[[np.ndarray], np.ndarray]
"""Members' log-probabilities [N, V] -> the fused ones [V]."""


def averaged(weights: Sequence[float]) -> Merge:
    return lambda logs: np.log(np.einsum("n,nv->v", np.array(weights), np.exp(logs)))


def multiplied(weights: Sequence[float]) -> Merge:
    def merge(logs: np.ndarray) -> np.ndarray:
        scores = np.einsum("n,nv->v", np.array(weights), logs)
        top = scores.max()
        return np.asarray(scores - top - np.log(np.exp(scores - top).sum()))

    return merge


class Judge:
    """Compares answers with the reference, and counts near ties."""

    def __init__(self, base: Path, adapters: Mapping[str, Sequence[Path]]) -> None:
        self.models = {name: tiny.Reference(base, *paths) for name, paths in adapters.items()}
        self.tokenizer = next(iter(self.models.values())).tokenizer
        self.ties = 0
        self.tokens = 0
        self.answers = 0

    @torch.no_grad()
    def logs(self, model: str, prompt: str, tokens: Sequence[int]) -> np.ndarray:
        """[T, V] log-probabilities at every position of `tokens`, each after the ones before."""
        reference = self.models[model]
        ids = reference.tokenizer(prompt)["input_ids"]
        logits = reference.logits([*ids, *tokens[:-1]])[len(ids) - 1 :]
        return np.asarray(logits.double().log_softmax(-1))

    def check(
        self, choice: Mapping[str, Any], members: Sequence[tuple[str, str]], merge: Merge
    ) -> None:
        """A greedy completion with `token_ids`, `logprobs`, and the members' figures, from (model, prompt) pairs.

        Every token is the most likely one after those before it, or as likely within the tolerance."""
        tokens = choice["token_ids"]
        each = np.stack([self.logs(model, prompt, tokens) for model, prompt in members])
        fused = np.stack([merge(each[:, place]) for place in range(len(tokens))])
        chosen = fused[np.arange(len(tokens)), tokens]
        gaps = fused.max(axis=1) - chosen
        assert (gaps < TIE).all(), f"not the reference's token: {gaps.max()} from its top"
        ordered = np.sort(fused, axis=1)
        self.ties += int((ordered[:, -1] - ordered[:, -2] < TIE).sum())
        self.tokens += len(tokens)
        self.answers += 1
        np.testing.assert_allclose(choice["logprobs"]["token_logprobs"], chosen, atol=1e-3)
        for place, top in enumerate(choice["logprobs"]["top_logprobs"]):
            values = {int(token.removeprefix("token_id:")): value for token, value in top.items()}
            for token, value in values.items():
                assert abs(value - fused[place, token]) < 1e-3
            best = np.sort(fused[place])[::-1][: choice.get("top", 3)]
            given = np.sort(list(values.values()))[::-1][: len(best)]
            np.testing.assert_allclose(given, best, atol=1e-3)
        if "members" in choice:
            own = each[:, np.arange(len(tokens)), tokens]
            alone = [member["token_logprobs"] for member in choice["members"]]
            np.testing.assert_allclose(alone, own, atol=1e-3)
            assert len(choice["disagreement"]) == len(tokens)

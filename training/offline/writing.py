"""Writes greedy answers of members, alone or together, as engines do: with the base's penalties and end tokens."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from serve.base.side_files import GenerationDefaults
from serve.fusion.tokens.penalties import Penalties, penalise
from serve.fusion.tokens.sampling import Sampling
from serve.fusion.tokens.step import fuse_step
from serve.manifest import Member, TokenMethod
from training.offline.adapters import LoadedAdapters
from training.offline.prompts import Pixels
from training.progress import Advance

ROWS = 64
"""The most texts that are written at once."""


@dataclass(frozen=True)
class Written:
    """What was written after one prompt."""

    text: str
    """Without surrounding space."""
    tokens: tuple[int, ...]
    """With the end token, unless the limit came first."""


class Writer:
    """Writes answers with a base and its loaded adapters."""

    def __init__(
        self, adapters: LoadedAdapters, tokenizer: Any, defaults: GenerationDefaults
    ) -> None:
        self._adapters = adapters
        self._tokenizer = tokenizer
        self._ends = defaults.ends
        self._penalties = Penalties(defaults.repetition, defaults.frequency, defaults.presence)

    def write(
        self,
        members: Sequence[Member],
        prompts: Sequence[Sequence[Sequence[int]]],
        pixels: Pixels,
        weights: Sequence[float],
        method: TokenMethod,
        limit: int,
        advance: Advance,
    ) -> list[Written]:
        """Return what `members` write together after each prompt.

        `prompts`: token ids [members][texts]; `pixels` reads the images in them. An answer has at most
        `limit` tokens. `weights` are the members';
        `advance` counts finished texts."""
        written = [Written("", ())] * len(prompts[0])
        lengths = [tuple(map(len, own)) for own in zip(*prompts, strict=True)]
        for chunk in equal_length(lengths, ROWS):
            with torch.inference_mode():
                chosen = [[own[index] for index in chunk] for own in prompts]
                rows = self._rows(members, chosen, pixels(chunk), weights, method, limit)
            for index, row in zip(chunk, rows, strict=True):
                # vLLM never cleans up spaces, whatever the tokenizer's files say.
                text = self._tokenizer.decode(
                    [token for token in row if token not in self._ends],
                    skip_special_tokens=True,
                    clean_up_tokenization_spaces=False,
                )
                written[index] = Written(text.strip(), tuple(row))
            advance(len(chunk))
        return written

    def _rows(
        self,
        members: Sequence[Member],
        prompts: Sequence[Sequence[Sequence[int]]],
        pixels: Mapping[str, torch.Tensor],
        weights: Sequence[float],
        method: TokenMethod,
        limit: int,
    ) -> list[list[int]]:
        """Return the tokens after prompts [members][texts], each up to its end token, and with it. A member's are of
        equal length."""
        count = len(prompts[0])
        rows: list[list[int]] = [[] for _ in range(count)]
        going = [True] * count
        caches: list[Any] = [None] * len(members)
        ids = [torch.tensor(own) for own in prompts]
        shares = torch.tensor(weights).expand(count, -1)
        greedy = [Sampling(temperature=0.0)] * count
        seen = pixels
        for position in range(limit):
            logits = []
            for number, member in enumerate(members):
                with self._adapters.active(member) as active:
                    makes = active.first if caches[number] is None else active.later
                    out = makes(
                        input_ids=ids[number],
                        past_key_values=caches[number],
                        use_cache=True,
                        logits_to_keep=1,
                        **seen,
                    )
                caches[number] = out.past_key_values
                logits.append(self._penalised(out.logits[:, -1], prompts[number], rows))
            seen = {}  # the caches hold the images
            step = fuse_step(
                torch.stack(logits, dim=1),
                shares,
                method,
                samplings=greedy,
                positions=[position] * count,
            )
            for number, token in enumerate(step.tokens.tolist()):
                if going[number]:
                    rows[number].append(token)
                going[number] = going[number] and token not in self._ends
            if not any(going):
                break
            ids = [step.tokens.unsqueeze(1)] * len(members)
        return rows

    def _penalised(
        self,
        logits: torch.Tensor,
        prompts: Sequence[Sequence[int]],
        rows: Sequence[Sequence[int]],
    ) -> torch.Tensor:
        """Apply the base's penalties to one member's logits [B, V]; `rows` are the tokens written so far."""
        if self._penalties.neutral:
            return logits
        return torch.stack(
            [
                penalise(own, prompt, row, self._penalties)
                for own, prompt, row in zip(logits, prompts, rows, strict=True)
            ]
        )


def equal_length(lengths: Sequence[Any], rows: int) -> Iterator[list[int]]:
    """Yield indices in chunks of at most `rows` with equal `lengths` (numbers, or tuples of them), so that nothing is
    padded on the left."""
    groups: dict[Any, list[int]] = defaultdict(list)
    for index, length in enumerate(lengths):
        groups[length].append(index)
    for length in sorted(groups):
        for start in range(0, len(groups[length]), rows):
            yield groups[length][start : start + rows]

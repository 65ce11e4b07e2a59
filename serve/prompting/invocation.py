"""The token sequence from which an activated LoRA acts (Greenewald et al. 2025, arXiv 2504.12397).

Before its invocation the model is the base, so all members share what the base has computed there. The invocation is
tokenised by itself: no token merges over its beginning, so it is the same tokens after every text."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Invocation:
    """An adapter's invocation."""

    tokens: tuple[int, ...]
    """Token ids, at least one."""
    text: str
    """What they stand for."""

    def start_in(self, prompt: Sequence[int]) -> int | None:
        """Returns where the adapter begins to act in a prompt; None if the prompt lacks the invocation."""
        return last_occurrence(prompt, self.tokens)


def last_occurrence(prompt: Sequence[int], wanted: Sequence[int]) -> int | None:
    """Returns where the last occurrence of `wanted` (at least one token) begins in `prompt`, as PEFT finds it; None if
    there is none."""
    first, size, whole = wanted[0], len(wanted), list(wanted)
    for start in range(len(prompt) - size, -1, -1):
        if prompt[start] == first and list(prompt[start : start + size]) == whole:
            return start
    return None

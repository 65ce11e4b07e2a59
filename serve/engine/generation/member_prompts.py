"""What each member reads of a completion's texts, where some members are activated LoRAs."""

from collections.abc import Sequence
from typing import Any

from serve.engine.generation.client import GenerationContext, MemberRun
from serve.labels import INVOCATION, encoder
from serve.prompting.reader import cut


class MemberPrompts:
    """Tokenises a completion's texts for members with and without an invocation.

    A text ends in the mark for invocations, which is each member's own and nothing for the others; or in the text of an
    invocation. That end is tokenised by itself. Any other text is tokenised as a whole, and must hold the invocation's
    tokens somewhere."""

    def __init__(self, tokenizer: Any) -> None:
        self._encode = encoder(tokenizer)

    def needed(self, context: GenerationContext) -> bool:
        """Returns whether the mark or an invocation may end a text: the ensemble's template has the mark, or a member
        that answers has an invocation."""
        return context.ensemble.template.endswith(INVOCATION) or any(
            run.member_adapters.invocation is not None for run in context.member_runs
        )

    def read(self, text: str, runs: Sequence[MemberRun]) -> dict[str, list[int]]:
        """Returns each member's token ids of a text. What several members read is tokenised once."""
        parts = {run.name: _parted(text, run) for run in runs}
        heads = list(dict.fromkeys(head for head, _ in parts.values()))
        ids = dict(zip(heads, self._encode(heads), strict=True))
        return {name: [*ids[head], *behind] for name, (head, behind) in parts.items()}


def _parted(text: str, run: MemberRun) -> tuple[str, tuple[int, ...]]:
    """Returns what is tokenised as a text, and the invocation's tokens behind it."""
    invocation = run.member_adapters.invocation
    head = cut(text, invocation) if invocation is not None else None
    if invocation is None or head is None:
        return text.removesuffix(INVOCATION), ()
    return head, invocation.tokens

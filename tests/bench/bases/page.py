"""docs/bases.md: its table, written and read."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from serve.base.architectures import unserved_base
from serve.base.causal_models import MORE_THAN_TEXT, TEXT
from serve.base.folder import BaseKind, kind_of
from tests.bench.bases.candidates import Candidate

PAGE = Path(__file__).parents[3] / "docs" / "bases.md"
EQUAL = 1e-4
"""A difference that float32 explains, over the standard deviation of the values."""
_WORDS = {"encoder": "heads", "causal": "text"}
_ROW = re.compile(
    r"^\| `(?P<architecture>\w+)`(?: \((?P<note>.+)\))? \| (?P<by>\w+) \| (?P<said>.+) \|$"
)
_SERVED = re.compile(r"equal to transformers \((?P<difference>\S+)\)")


@dataclass(frozen=True)
class Row:
    """What was seen of a base."""

    base: str
    kind: BaseKind
    reason: str | None
    """Why it is refused."""
    difference: float | None
    """Where it is served: the largest one from transformers."""


def kinds(candidate: Candidate) -> tuple[BaseKind, ...]:
    """As what a base may be used."""
    config = candidate.make_config().to_dict()
    if kind_of(config) == "encoder":
        return ("encoder",)
    return ("causal", "encoder") if candidate.heads else ("causal",)


def unserved(candidate: Candidate, kind: BaseKind) -> str | None:
    return unserved_base(candidate.make_config().to_dict(), kind)


def read(text: str) -> list[Row]:
    """The rows of a page."""
    rows = []
    for line in text.splitlines():
        if (found := _ROW.match(line)) is not None:
            name = found["architecture"] + (f" ({found['note']})" if found["note"] else "")
            kind: BaseKind = "encoder" if found["by"] == _WORDS["encoder"] else "causal"
            served = _SERVED.fullmatch(found["said"])
            rows.append(
                Row(name, kind, None, float(served["difference"]))
                if served
                else Row(name, kind, found["said"], None)
            )
    return rows


def render(rows: Sequence[Row]) -> str:
    seen = {row.base.partition(" ")[0] for row in rows}
    others = sorted(TEXT - seen, key=str.lower)
    return f"""# Bases

Which bases are served, by the architecture in their `config.json`. A base is served where vLLM 0.32 has a model of it
that takes LoRA and that answers as transformers does. Anything else is refused by `choir pack`, `choir verify`,
`choir train` and `choir serve`, with the reason, before a model is loaded.

An encoder that is published with the head of its pretraining (`BertForMaskedLM`, as `bert-base-uncased` is) is served
as its backbone; the head is left behind, as transformers' `AutoModel` does. A base with a head that was trained for a
task (`...ForSequenceClassification`) is refused: save it without that head.

A text may be as long as the base has positions for. A RoBERTa has fewer than its `max_position_embeddings`, because its
first position is the one behind the padding token's id: 512 of 514. The engine refuses a longer text with a 400,
offline and in training it is cut.

The table is made by `python -m tests.bench.bases`: a tiny model of each architecture, with random weights and a LoRA
over its linear layers, in the engine's worker on the CPU in float32, against PEFT and transformers (eager attention).
The figure is the largest absolute difference of pooled vectors (`heads`) or of log-probabilities of the next token
(`text`), with the adapter and without it, for texts of 3 and 11 tokens and of all positions, over the standard
deviation of the values.

| base | answers by | seen |
|---|---|---|
{chr(10).join(map(_line, rows))}

These take LoRA in vLLM too, and are served as they are; nobody has compared them here yet:

{", ".join(f"`{name}`" for name in others)}.

So do {len(MORE_THAN_TEXT)} that read images or sounds besides text (`serve/base/causal_models.py` has their names).
"""


def _line(row: Row) -> str:
    architecture, _, note = row.base.partition(" ")
    said = row.reason or f"equal to transformers ({row.difference:.1e})"
    return f"| `{architecture}`{' ' + note if note else ''} | {_WORDS[row.kind]} | {said} |"

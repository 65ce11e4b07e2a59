"""The files beside a base's weights: which of them count, and what they say.

vLLM and transformers each read what they know of by themselves. Training, evaluation and serving all follow this table
instead, so that what is evaluated is what is served:

- `config.json` and the tokenizer's files count as transformers reads them. Mistral's own formats do not (`params.json`,
  `tekken.json`).
- `generation_config.json` counts as vLLM reads it: its penalties and its end tokens, also for greedy answers. Its
  temperature and the like are for requests that leave them out.
- `processor_config.json` or `preprocessor_config.json` says how images are scaled and normalised, where a base reads
  images.
- `1_Pooling/config.json` of sentence-transformers says which vector new members' heads read: the mean over the tokens,
  the first token's or the last one's; what it says otherwise is refused. Nothing else of sentence-transformers counts:
  `modules.json` and the other modules that it names (`2_Dense`, `3_Normalize`), and how `sentence_bert_config.json`
  changes the tokenizer. Once a head is trained, it says itself what it reads.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoTokenizer, GenerationConfig

from serve.base.folder import BaseError, Pooling

_POOLING_FILE = "1_Pooling/config.json"
_PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")
_MODE = "pooling_mode"
_POOLINGS: dict[str, Pooling] = {
    "mean": "mean",
    "mean_tokens": "mean",
    "cls": "cls",
    "cls_token": "cls",
    "lasttoken": "last",
}
"""By the names of sentence-transformers: from version 6 on in `pooling_mode`, before as `pooling_mode_<name>: true`."""
MODEL_FILES = (
    "config.json", "generation_config.json", "*.safetensors", "*.safetensors.index.json", "tokenizer.json",
    "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja", "vocab.txt",
    "vocab.json", "merges.txt", "tokenizer.model", "sentencepiece.bpe.model", "spiece.model",
    *_PROCESSOR_FILES, _POOLING_FILE,
)  # fmt: skip
"""The files of a base's folder that count, by name or pattern. Others, such as code and pickles, are not copied."""


@dataclass(frozen=True)
class GenerationDefaults:
    """A base's own settings for greedy answers. The penalties are those of vLLM's sampling parameters."""

    ends: frozenset[int]
    """Tokens that end an answer and are not part of it."""
    repetition: float = 1.0
    frequency: float = 0.0
    presence: float = 0.0


def read_pooling(folder: Path) -> Pooling:
    """Returns which vector of a text an encoder in `folder` was trained to give, as sentence-transformers stored it;
    the mean over the tokens if it says nothing. Raises BaseError if it says something that heads do not read."""
    try:
        said = json.loads((folder / _POOLING_FILE).read_bytes())
    except (OSError, ValueError):
        return "mean"
    modes = _modes(said) if isinstance(said, dict) else []
    if not modes:
        return "mean"
    if len(modes) == 1 and modes[0] in _POOLINGS:
        return _POOLINGS[modes[0]]
    together = " and ".join(modes)
    raise BaseError(
        f"Its {_POOLING_FILE} pools by {together}, which is not served; expected mean, cls or lasttoken alone."
    )


def _modes(said: dict[str, Any]) -> list[str]:
    given = said.get(_MODE)
    if given is None:
        flag = f"{_MODE}_"
        return [
            key.removeprefix(flag) for key in said if key.startswith(flag) and said[key] is True
        ]
    return [str(mode) for mode in given] if isinstance(given, list) else [str(given)]


def copy_side_files(source: Path, target: Path) -> None:
    """Copies what says how a base reads its inputs, beside its tokenizer, to another folder of the same base: how texts
    are pooled, and how images are scaled."""
    for name in (_POOLING_FILE, *_PROCESSOR_FILES):
        file = source / name
        if file.is_file():
            (target / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(file, target / name)


def read_tokenizer(source: str, revision: str | None = None) -> Any:
    """Returns the tokenizer of a base, from its folder or hub id. vLLM's own would follow files that do not count."""
    return AutoTokenizer.from_pretrained(source, revision=revision or "main")


def read_generation_defaults(
    source: str, tokenizer: Any, revision: str | None = None
) -> GenerationDefaults:
    """Returns what `generation_config.json` of a base says, or if there is none its `config.json`, with the tokenizer's
    end token added."""
    revision = revision or "main"
    try:
        config = GenerationConfig.from_pretrained(source, revision=revision)
    except OSError:
        own = AutoConfig.from_pretrained(source, revision=revision)
        config = GenerationConfig.from_model_config(own)
    said = config.to_diff_dict()
    ends = said.get("eos_token_id")
    several = ends if isinstance(ends, list) else [ends]
    return GenerationDefaults(
        ends=frozenset(end for end in [*several, tokenizer.eos_token_id] if end is not None),
        repetition=_number(said, "repetition_penalty", 1.0),
        frequency=_number(said, "frequency_penalty", 0.0),
        presence=_number(said, "presence_penalty", 0.0),
    )


def _number(said: dict[str, Any], name: str, default: float) -> float:
    value = said.get(name)
    return default if value is None else float(value)

"""Answers written offline equal served ones: with the penalties and end tokens of the base's files."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    RepetitionPenaltyLogitsProcessor,
)

from serve.base.side_files import GenerationDefaults
from serve.bundle import Bundle
from serve.manifest import Member
from serve.pack import pack
from tests.serve import tiny
from training.offline.adapters import LoadedAdapters
from training.offline.members import OfflineMembers
from training.offline.prompts import no_pixels
from training.offline.writing import Writer, Written

PROMPTS = ["where is my card", "please cancel the payment", "A B C D"]
LIMIT = 16
PENALTY = 1.3


def write_config(base: Path, **content: Any) -> None:
    (base / "generation_config.json").write_text(json.dumps(content))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    root = tmp_path_factory.mktemp("writing")
    base = tiny.causal_base(root / "base")
    adapters = {name: tiny.lora(base, root / name, seed=seed) for seed, name in enumerate("ab", 1)}
    return pack(str(base), adapters, root / "bundle", task="generation", fusion="average")


class Reference:
    """transformers' penalty over PEFT's logits; every text is read again for each token."""

    def __init__(self, bundle: Bundle) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(bundle.base_source)
        self.penalty = RepetitionPenaltyLogitsProcessor(PENALTY)
        self.models = [
            PeftModel.from_pretrained(
                AutoModelForCausalLM.from_pretrained(bundle.base_source, dtype=torch.float32),
                str(bundle.adapter_dir(member.adapters[0])),
            ).eval()
            for member in bundle.ensemble("ensemble").members
        ]

    @torch.no_grad()
    def written(self, prompt: str, members: Sequence[int], ends: set[int]) -> list[int]:
        ids = self.tokenizer(prompt, return_tensors="pt")["input_ids"]
        tokens: list[int] = []
        while len(tokens) < LIMIT:
            whole = torch.cat([ids, torch.tensor([tokens], dtype=torch.int64)], dim=1)
            logits = [self.models[each](whole).logits[:, -1] for each in members]
            rows = [self.penalty(whole, each).double().softmax(-1) for each in logits]
            token = int(torch.stack(rows).mean(0).argmax())
            if token in ends:
                break
            tokens.append(token)
        return tokens


@pytest.mark.parametrize("members", [(0,), (1,), (0, 1)])
def test_penalties_and_end_tokens_of_the_base_apply(bundle: Bundle, members: tuple[int]) -> None:
    reference = Reference(bundle)
    open_ended = [reference.written(prompt, members, {0}) for prompt in PROMPTS]
    second = open_ended[0][5]
    write_config(
        Path(bundle.base_source),
        eos_token_id=[0, second],
        repetition_penalty=PENALTY,
        # transformers alone would follow these settings; vLLM ignores them.
        no_repeat_ngram_size=1,
        num_beams=3,
        max_new_tokens=2,
    )
    right = [reference.written(prompt, members, {0, second}) for prompt in PROMPTS]
    assert len(right[0]) < len(open_ended[0])
    offline = OfflineMembers(bundle, bundle.ensemble("ensemble"))
    if len(members) == 1:
        written = offline.answers(PROMPTS, LIMIT)[members[0]]
    else:
        written = offline.fused_answers(PROMPTS, "average", LIMIT)
    assert written == [reference.tokenizer.decode(tokens).strip() for tokens in right]


def test_spaces_stay_as_they_were_written(tmp_path: Path) -> None:
    """A tokenizer may ask for cleaned-up spaces, which vLLM never does."""
    words = [".", ",", "!", "?"]
    tokens = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}))
    tokens.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokens, clean_up_tokenization_spaces=True)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=1,
    )
    model = LlamaForCausalLM(config).eval()
    writer = Writer(LoadedAdapters(model, {}), tokenizer, GenerationDefaults(ends=frozenset()))
    base = Member(name="base", adapters=[])
    heard: list[int] = []
    [own] = writer.write([base], [[[2, 3]]], no_pixels, [1.0], "average", 4, heard.append)
    written = model.generate(
        torch.tensor([[2, 3]]), max_new_tokens=4, do_sample=False, eos_token_id=None
    )
    ids = written[0, 2:].tolist()
    assert len(ids) == 4
    assert own == Written(" ".join(words[token] for token in ids), tuple(ids))
    assert tokenizer.decode(ids) != own.text
    assert heard == [1]

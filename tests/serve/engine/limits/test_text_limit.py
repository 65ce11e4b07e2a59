"""Texts that cannot fit the model's context are refused by their length, before they are tokenized."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from serve.engine.interface import GenerateCall
from serve.engine.limits.prompt_lengths import doubtful_prompts, length_refusal
from serve.engine.limits.text_limit import SLICE, TextLimit, few_at_a_time
from serve.labels import LabelError
from tests.serve import tiny

CONTEXT = 256


class Counting:
    """A tokenizer that counts the characters it reads."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.read = 0

    def get_vocab(self) -> dict[str, int]:
        return self._tokenizer.get_vocab()

    def __call__(self, text: str, **options: Any) -> Any:
        self.read += len(text)
        return self._tokenizer(text, **options)


@pytest.fixture(scope="module", params=[tiny.causal_base, tiny.encoder_base])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    make: Callable[[Path], Path] = request.param
    return AutoTokenizer.from_pretrained(make(tmp_path_factory.mktemp("base")))


def test_a_text_of_30_mb_is_refused_unread(tokenizer: Any) -> None:
    counting = Counting(tokenizer)
    limit = TextLimit(counting, CONTEXT)
    for text in ("card " * 6_000_000, "a" * 30_000_000, " " * 30_000_000):
        with pytest.raises(LabelError, match=r"30,000,000 characters.*256 tokens"):
            limit.check([text])
    assert counting.read == 0


def test_a_text_that_may_fit_is_not_refused_unread(tokenizer: Any) -> None:
    """A text whose tokens fit has fewer characters than the limit, unless the tokenizer drops some of them."""
    limit = TextLimit(tokenizer, CONTEXT)
    longest = max(tokenizer.get_vocab(), key=len)
    text = tokenizer.convert_tokens_to_string([longest] * (CONTEXT - 2))
    assert len(tokenizer(text)["input_ids"]) <= CONTEXT
    limit.check([text, "card " * CONTEXT])
    limit.check_doubtful(text)


def test_a_doubtful_text_is_read_until_it_is_clear(tokenizer: Any) -> None:
    counting = Counting(tokenizer)
    limit = TextLimit(counting, 20_000)
    text = "card " * 500_000
    limit.check([text])
    with pytest.raises(LabelError, match="2,500,000 characters"):
        limit.check_doubtful(text)
    assert counting.read < 4 * SLICE, "far from all of it"
    counting.read = 0
    limit.check_doubtful("card " * 30_000)
    assert counting.read == 0, "a text that is not doubtful is tokenized later, once"


def test_a_doubtful_text_that_fits_is_let_through() -> None:
    """A run of spaces is few tokens, or none, for some tokenizers."""

    class Words(Counting):
        def __call__(self, text: str, **options: Any) -> Any:
            self.read += len(text)
            return {"input_ids": text.split()}

    limit = TextLimit(Words(AutoTokenizerVocabulary()), 4096)
    limit.check_doubtful(" " * 400_000 + "card")
    limit.check_doubtful("x" * 500_000)


class AutoTokenizerVocabulary:
    def get_vocab(self) -> dict[str, int]:
        return {"card": 0}


def test_texts_are_read_a_few_at_a_time() -> None:
    texts = ["x" * 10] * 200 + ["y" * SLICE] * 3 + ["z"]
    parts = list(few_at_a_time(texts))
    assert [text for part in parts for text in part] == texts
    assert max(sum(map(len, part)) for part in parts) <= SLICE + 64 * 10
    assert max(map(len, parts)) <= 64
    assert list(few_at_a_time([])) == []


def call(route: str, **body: Any) -> GenerateCall:
    prompts = body.pop("prompts", None)
    return GenerateCall("v@1", route, body, "id", prompts=prompts)  # type: ignore[arg-type]


WORD = "card " * 6_000_000
USER = {"role": "user", "content": "hi"}


@pytest.mark.parametrize(
    ("asked", "param"),
    [
        (call("completions", prompt=WORD), "prompt"),
        (call("completions", prompt=["hi", WORD]), "prompt"),
        (call("completions", prompt=[1] * (CONTEXT + 1)), "prompt"),
        (call("completions", prompt=[[1], [1] * (CONTEXT + 1)]), "prompt"),
        (call("completions", prompt=WORD, truncate_prompt_tokens=5), "prompt"),
        (call("completions", prompt="hi", prompts={"a": WORD}), "fusion.prompts"),
        (call("chat", messages=[{"role": "user", "content": WORD}]), "messages"),
        (
            call(
                "chat",
                messages=[USER, {"role": "user", "content": [{"type": "text", "text": WORD}]}],
            ),
            "messages",
        ),
        (call("chat", messages=[USER] * (CONTEXT + 1)), "messages"),
        (
            call(
                "chat", messages=[{"role": "user", "content": [{"type": "text", "text": ""}] * 300}]
            ),
            "messages",
        ),
    ],
)
def test_prompts_and_messages_that_cannot_fit_are_refused_unread(
    tokenizer: Any, asked: GenerateCall, param: str
) -> None:
    counting = Counting(tokenizer)
    refusal = length_refusal(asked, TextLimit(counting, CONTEXT))
    assert refusal is not None
    assert (refusal.status, refusal.param) == (400, param)
    assert "shorten" in refusal.message
    assert counting.read == 0


@pytest.mark.parametrize(
    "asked",
    [
        call("completions", prompt="card " * CONTEXT),
        call("completions", prompt=[1] * CONTEXT),
        call("completions", prompt=[1] * (CONTEXT + 1), truncate_prompt_tokens=5),
        call("completions", prompt=["hi"] * 1000),
        call("completions", prompt=[]),
        call("completions", prompt=7),
        call("completions"),
        call("chat", messages=[USER] * 20),
        call("chat", messages=[USER, {"role": "user", "content": None}, "x", 7, {"content": [7]}]),
        call("chat", messages="x"),
        call(
            "chat",
            messages=[
                {
                    "role": "user",
                    "content": [
                        {"type": "image_url", "image_url": {"url": f"data:{'x' * 1_000_000}"}}
                    ],
                }
            ],
        ),
    ],
)
def test_prompts_that_may_fit_or_are_malformed_are_left_to_vllm(
    tokenizer: Any, asked: GenerateCall
) -> None:
    assert length_refusal(asked, TextLimit(tokenizer, CONTEXT)) is None


def test_doubtful_prompts_are_those_that_probably_do_not_fit(tokenizer: Any) -> None:
    limit = TextLimit(tokenizer, CONTEXT)
    long, short = "card " * CONTEXT * 4, "card " * CONTEXT
    asked = call("completions", prompt=[short, long, [1, 2], 7, long])
    assert doubtful_prompts(asked, limit) == [long, long]
    assert doubtful_prompts(call("completions", prompt=long), limit) == [long]
    assert doubtful_prompts(call("completions", prompt=long, truncate_prompt_tokens=9), limit) == []
    assert doubtful_prompts(call("chat", messages=[{"content": long}]), limit) == []
    assert doubtful_prompts(call("completions"), limit) == []

"""What members with an invocation read, compared with the tokenizer itself."""

from typing import Any

import pytest
from transformers import AutoTokenizer

from serve.labels import INVOCATION, LabelError, completion_prompt, fill
from serve.prompting.invocation import last_occurrence
from serve.prompting.reader import PromptReader, cut
from tests.serve import tiny

ASKS = "\nIntent:"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return AutoTokenizer.from_pretrained(tiny.causal_base(tmp_path_factory.mktemp("base")))


@pytest.fixture
def reader(tokenizer: Any) -> PromptReader:
    return PromptReader(tokenizer)


@pytest.mark.parametrize(
    ("prompt", "start"),
    [([1, 2, 3], 1), ([2, 3, 2, 3, 4], 2), ([2, 3], 0), ([3, 2], None), ([2], None), ([], None)],
)
def test_the_last_occurrence_is_found(prompt: list[int], start: int | None) -> None:
    assert last_occurrence(prompt, (2, 3)) == start


def test_text_never_merges_with_the_invocation(reader: PromptReader, tokenizer: Any) -> None:
    """`card` is one token, and stays two if the invocation begins in its middle."""
    whole = tokenizer("where is my card")["input_ids"]
    invocation = reader.invocation_of_text("rd")
    [ids] = reader.contexts(["where is my ca"], invocation)
    assert ids != whole
    assert tuple(ids[-len(invocation.tokens) :]) == invocation.tokens
    assert tokenizer.decode(ids) == "where is my card"


def test_labels_follow_the_invocation_as_they_follow_its_text(
    reader: PromptReader, tokenizer: Any
) -> None:
    invocation = reader.invocation_of_text(ASKS)
    [paths] = reader.paths(["where is my card"], [" card lost", " top up"], invocation)
    for path, label in zip(paths, [" card lost", " top up"], strict=True):
        assert path.context[-len(invocation.tokens) :] == invocation.tokens
        assert tokenizer.decode(path.tokens) == label


def test_a_label_that_merges_with_the_invocation_is_refused(reader: PromptReader) -> None:
    with pytest.raises(LabelError, match="read together with the end of the invocation"):
        reader.paths(["where is"], ["rd lost", "rd top"], reader.invocation_of_text("my ca"))


def test_tokens_that_are_no_text_are_refused_for_labels(
    reader: PromptReader, tokenizer: Any
) -> None:
    pieces = tokenizer("ca")["input_ids"] + tokenizer("rd")["input_ids"]
    with pytest.raises(LabelError, match="are not those of its text"):
        reader.paths(["where"], [" a", " b"], reader.invocation(pieces))


def test_a_template_ends_in_the_mark_or_the_text(reader: PromptReader) -> None:
    invocation = reader.invocation_of_text(ASKS)
    assert reader.head("Message: {text}{invocation}", invocation) == "Message: {text}"
    assert reader.head(f"Message: {{text}}{ASKS}", invocation) == "Message: {text}"
    with pytest.raises(LabelError, match="must end in"):
        reader.head("Message: {text}", invocation)
    assert cut("no end", invocation) is None


def test_the_mark_is_nothing_for_other_members() -> None:
    template = "{text_pair} {text}{invocation}"
    assert fill(template, "a", "b") == "b a"
    assert completion_prompt(template, "a{invocation}", "b") == f"b a{INVOCATION}{INVOCATION}"
    assert completion_prompt("{text}", "a") == "a"


def test_a_text_without_tokens_is_no_invocation(reader: PromptReader) -> None:
    with pytest.raises(LabelError, match="no tokens"):
        reader.invocation_of_text("")

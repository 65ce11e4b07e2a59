"""What is scored for a label, over tokenizers of other alphabets than ours."""

from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from serve.labels import encoder, fill, filled, label_paths, readable

ALPHABETS = {"greek": "αβγδε", "digits": "12345", "latin": "abcde"}
TEMPLATES = {
    "nothing": ("$A", 0, 0),
    "start": ("<s> $A", 1, 0),
    "end": ("$A </s>", 0, 1),
    "both": ("<s> $A </s>", 1, 1),
    "two ends": ("<s> $A </s> </s>", 1, 2),
}


def tokenizer_of(letters: str, template: str) -> Any:
    """A token for each letter, from 3 on. It has none for what it does not know: other texts have no token at all."""
    vocabulary = {name: place for place, name in enumerate(["<s>", "</s>", "<pad>", *letters])}
    tokens = Tokenizer(models.BPE(vocabulary, []))
    tokens.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokens.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokens, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


@pytest.mark.parametrize("alphabet", ALPHABETS)
@pytest.mark.parametrize("template", TEMPLATES)
def test_only_what_a_tokenizer_puts_at_the_end_is_cut(alphabet: str, template: str) -> None:
    letters = ALPHABETS[alphabet]
    around, before, after = TEMPLATES[template]
    tokenizer = tokenizer_of(letters, around)
    texts = [letters, letters[0], ""]
    own = [[3, 4, 5, 6, 7], [3], []]
    whole = [[0] * before + ids + [1] * after for ids in own]
    assert tokenizer(texts)["input_ids"] == whole
    assert encoder(tokenizer)(texts) == [[0] * before + ids for ids in own]


@pytest.mark.parametrize("alphabet", ALPHABETS)
def test_a_label_follows_the_whole_prompt(alphabet: str) -> None:
    letters = ALPHABETS[alphabet]
    encode = encoder(tokenizer_of(letters, "<s> $A"))
    [path, other] = label_paths(encode, letters[:2], [f" {letter}" for letter in letters[1:3]])
    assert (path.context, path.tokens) == ((0, 3, 4), (4,))
    assert (other.context, other.tokens) == ((0, 3, 4), (5,))


@pytest.mark.parametrize("alphabet", ALPHABETS)
def test_a_readable_text_has_an_ordinary_token(alphabet: str) -> None:
    tokenizer = tokenizer_of(ALPHABETS[alphabet], "<s> $A </s>")
    ids = tokenizer(readable(tokenizer), add_special_tokens=False)["input_ids"]
    assert ids
    assert not set(ids) & set(tokenizer.all_special_ids)


@pytest.mark.parametrize(
    ("template", "image", "parts"),
    [
        ("{text}\nIntent:", "", ("", "a {text}\nIntent:")),
        ("{text}\nIntent:", "<image>", ("<image>", "a {text}\nIntent:")),
        ("Look: {image}\n{text} is", "<image>", ("Look: <image>", "\na {text} is")),
        ("Look: {image}\n{text} is", "", ("", "Look: \na {text} is")),
        ("{text}: {image} is{invocation}", "<image>", ("a {text}: <image>", " is")),
        ("{image} is", "<image>", ("<image>", " is")),
    ],
)
def test_an_image_stands_where_the_template_says_or_before_the_text(
    template: str, image: str, parts: tuple[str, str]
) -> None:
    assert filled(template, "a {text}", None, image) == parts
    assert fill(template, "a {text}", None, image) == "".join(parts)


def test_an_image_stands_beside_both_texts_of_a_pair() -> None:
    parts = filled("{text_pair} {text}", "{image}", "{text}", "<image>")
    assert parts == ("{text} <image>", "{image}")

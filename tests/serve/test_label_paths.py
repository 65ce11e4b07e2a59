"""Which tokens a label has after a prompt, however long the prompt is."""

import random
from collections.abc import Callable, Sequence

import pytest
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from serve.labels import Encode, LabelError, encoder, label_paths
from tests.serve.tiny import CORPUS

LABELS = [
    " card",
    " card lost",
    " yes",
    "s",
    " 1",
    "0",
    " ca",
    ".",
    "\n",
    "ard",
    "\u0301",
    " \U0001f600",
]


def byte_level() -> Tokenizer:
    """As GPT-2's."""
    tokens = Tokenizer(models.BPE())
    tokens.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokens.train_from_iterator(CORPUS, trainer)
    return tokens


def digits_by_three() -> Tokenizer:
    """As Llama 3's: digits are cut by threes from the left, and a token stands at the start."""
    tokens = Tokenizer(models.BPE())
    tokens.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\p{N}{1,3}| ?\p{L}+|\s+(?!\S)|\s+|."), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokens.train_from_iterator([*CORPUS, "123 456 123456 12 1000 2000"], trainer)
    tokens.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokens.token_to_id("<s>"))]
    )
    return tokens


def whole_text() -> Tokenizer:
    """As Llama 2's and Gemma's: nothing is split before the merges, which may cross spaces."""
    tokens = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    tokens.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<unk>", "<s>"], show_progress=False
    )
    tokens.train_from_iterator(CORPUS, trainer)
    tokens.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokens.token_to_id("<s>"))]
    )
    return tokens


def unigram() -> Tokenizer:
    """As T5's, with a token at the end."""
    tokens = Tokenizer(models.Unigram())
    tokens.normalizer = normalizers.NFKC()
    tokens.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=200, special_tokens=["<unk>", "</s>"], unk_token="<unk>", show_progress=False
    )
    tokens.train_from_iterator(CORPUS, trainer)
    tokens.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", tokens.token_to_id("</s>"))]
    )
    return tokens


KINDS: dict[str, Callable[[], Tokenizer]] = {
    make.__name__: make for make in (byte_level, digits_by_three, whole_text, unigram)
}


@pytest.fixture(scope="module", params=KINDS)
def encode(request: pytest.FixtureRequest) -> Encode:
    return encoder(PreTrainedTokenizerFast(tokenizer_object=KINDS[request.param]()))


def by_the_rule(
    encode: Encode, prompt: str, labels: Sequence[str]
) -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
    """Context and tokens of each label, as the contract has it: prompt and label tokenised as a whole."""
    stem = prompt.rstrip(" ")
    alone, *both = encode([stem, *(stem + prompt[len(stem) :] + label for label in labels)])
    paths = {}
    for label, row in zip(labels, both, strict=True):
        shared = 0
        while shared < min(len(alone), len(row)) and alone[shared] == row[shared]:
            shared += 1
        paths[label] = tuple(row[:shared]), tuple(row[shared:])
    return paths


PIECES = [
    *(
        "card",
        "cards",
        "where is",
        "A",
        "é",
        "e\u0301",
        "カード",
        "\U0001f600",
        "12",
        "1234567",
        "....",
        "\t",
    ),
    *(
        "\n",
        "\n\n",
        "  ",
        "   ",
        "top-up",
        "yes",
        "x" * 40,
        "-" * 30,
        "pleasepleaseplease",
        "'s",
        " ",
    ),
]


def prompts(seed: int, number: int) -> list[str]:
    """Texts of every length around the one from which only the end is read again."""
    random_ = random.Random(seed)
    texts = []
    for _ in range(number):
        size = random_.choice([0, 100, 400, 511, 513, 600, 1500, 4000])
        between = random_.choice(["", " ", " "])
        text = "card"
        while len(text) < size:
            text += between + random_.choice(PIECES)
        texts.append(text + random_.choice(["", " ", ":", "\nIntent:", "  "]))
    return texts


def test_paths_are_those_of_prompt_and_label_tokenised_as_one(encode: Encode) -> None:
    for prompt in prompts(seed=1, number=60):
        expected = by_the_rule(encode, prompt, LABELS)
        different = {path: label for label, path in expected.items() if path[1]}
        paths = label_paths(encode, prompt, list(different.values()))
        given = [(path.context, path.tokens) for path in paths]
        assert given == list(different), prompt
        for label in (label for label, path in expected.items() if not path[1]):
            with pytest.raises(LabelError, match="adds no token"):
                label_paths(encode, prompt, [label])


def test_a_long_prompt_is_tokenised_once_for_all_labels(encode: Encode) -> None:
    read = 0

    def counted(texts: Sequence[str]) -> list[list[int]]:
        nonlocal read
        read += sum(map(len, texts))
        return encode(texts)

    prompt = "please cancel the payment that I made this morning " * 400 + "now:"
    labels = [f" {one}{other}" for one in "abcdefgh" for other in "abcdefghik"]
    paths = label_paths(counted, prompt, labels)
    assert read < 4 * len(prompt), "80 labels, and far from 80 times the prompt"
    assert len({id(path.context) for path in paths}) <= 2, "nor is the prompt held once a label"

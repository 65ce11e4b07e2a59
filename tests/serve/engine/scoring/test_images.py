"""Labels as text about images, in a real engine over a base that writes, against transformers and PEFT."""

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from serve.engine.interface import PredictCall, Prediction, Text
from serve.errors import Refusal
from serve.fusion.fused import Fused
from tests.serve import seeing
from tests.serve.engine.calls import member_probabilities, version
from tests.serve.engine.seeing_calls import MEMBERS, PICTURES, RANKS
from tests.serve.images.hostile import hostile, url_of
from tests.serve.seeing import Reference

pytestmark = [
    pytest.mark.engine,
    pytest.mark.slow,
    pytest.mark.asyncio(loop_scope="session"),
]

LABELS = ["A", "B", "card lost", "card lost abroad"]
WORDS = [f" {label}" for label in LABELS]
TEMPLATE = "Look: {image}\n{text} Intent:"
INPUTS: list[tuple[str, Image.Image | None]] = [
    ("where is my card?", PICTURES[0]),
    ("", PICTURES[1]),
    ("my transfer is still pending", None),
    ("two dogs", PICTURES[2]),
    ("", PICTURES[0]),
]
LABELLED: dict[str, Any] = {
    "task": "classification",
    "labels": LABELS,
    "template": TEMPLATE,
    "label_scoring": "mean",
}


def asked(given: tuple[str, Image.Image | None]) -> Text:
    text, image = given
    return Text(text, image=None if image is None else url_of(image))


async def predict(engine: Any, inputs: list[Text], key: str = "seen@1", **fields: Any) -> Any:
    call = PredictCall(key, tuple(inputs), "test", return_members=True, **fields)
    return await engine.predict(call)


def expected(reference: Reference, given: tuple[str, Image.Image | None]) -> list[float]:
    text, image = given
    prompt = f"Look: {'' if image is None else '<image>'}\n{text} Intent:"
    return reference.probabilities(prompt, [] if image is None else [image], WORDS)


async def test_labels_about_images_and_texts_in_one_call_equal_peft(
    seeing_engine: Any, seen: dict[str, Path], seen_references: dict[str, Reference]
) -> None:
    """By each member and fused; twice, the second time out of caches."""
    members = {**{name: name for name in RANKS}, "plain": None}
    await seeing_engine.prepare(version(seen, "seen", members, **LABELLED))
    each = np.array(
        [[expected(seen_references[name], given) for given in INPUTS] for name in MEMBERS]
    )
    assert np.ptp(each, axis=0).max() > 0.1  # members differ
    for _ in range(2):
        whole, *alone = await asyncio.gather(
            predict(seeing_engine, [asked(given) for given in INPUTS]),
            *(predict(seeing_engine, [asked(given)], member="both") for given in INPUTS),
        )
        assert isinstance(whole, Prediction), whole
        np.testing.assert_allclose(member_probabilities(whole), each, atol=1e-4)
        assert isinstance(whole.answers, Fused)
        np.testing.assert_allclose(whole.answers.probabilities, each.mean(0), atol=1e-4)
        for row, answer in enumerate(alone):
            said = member_probabilities(answer)[0, 0]
            np.testing.assert_allclose(said, each[MEMBERS.index("both"), row], atol=1e-4)


async def test_a_template_that_does_not_mention_the_image_has_it_before_the_text(
    seeing_engine: Any, seen: dict[str, Path], seen_references: dict[str, Reference]
) -> None:
    fields = {**LABELLED, "template": "{text}\nIntent:"}
    await seeing_engine.prepare(version(seen, "bare", {"both": "both"}, **fields))
    answer = await predict(seeing_engine, [asked(("two dogs", PICTURES[3]))], "bare@1")
    prompt = "<image>two dogs\nIntent:"
    said = seen_references["both"].probabilities(prompt, [PICTURES[3]], WORDS)
    np.testing.assert_allclose(member_probabilities(answer)[0, 0], said, atol=1e-4)
    await seeing_engine.release("bare@1")


async def test_soft_and_activated_members_score_labels_about_images(
    seeing_engine: Any,
    family: seeing.Family,
    seen: dict[str, Path],
    seen_references: dict[str, Reference],
    tmp_path: Path,
) -> None:
    tokenizer = seen_references["plain"].processor.tokenizer
    invocation = tokenizer("Intent:", add_special_tokens=False)["input_ids"]
    targets = seeing.TARGETS[family]["language"]
    late = seeing.lora(
        seen["base"], tmp_path / "late", targets, seed=9, rank=8, invocation=invocation
    )
    members = {"p": "prefix", "q": "prompt", "late": "late"}
    folders = {**seen, "late": late}
    fields = {**LABELLED, "template": "Look: {image}\n{text}\n{invocation}"}
    await seeing_engine.prepare(version(folders, "soft", members, **fields))
    given = INPUTS[0]
    answer = await predict(seeing_engine, [asked(given)], "soft@1")
    assert isinstance(answer, Prediction), answer
    prompt = f"Look: <image>\n{given[0]}\n"
    references = {"p": seen_references["prefix"], "q": seen_references["prompt"]}
    for place, reference in enumerate(references.values()):
        said = reference.probabilities(prompt, [PICTURES[0]], WORDS)
        np.testing.assert_allclose(member_probabilities(answer)[place, 0], said, atol=1e-3)
    said = Reference(seen["base"], late).probabilities(prompt + "Intent:", [PICTURES[0]], WORDS)
    np.testing.assert_allclose(member_probabilities(answer)[2, 0], said, atol=1e-3)
    await seeing_engine.release("soft@1")


async def test_usage_counts_what_an_image_became(
    seeing_engine: Any, seen_references: dict[str, Reference]
) -> None:
    given = INPUTS[0]
    answer = await predict(seeing_engine, [asked(given)])
    prompt = f"Look: <image>\n{given[0]} Intent:"
    ids = seen_references["plain"].inputs(prompt, [PICTURES[0]])["input_ids"][0]
    assert answer.prompt_tokens == len(ids)
    assert answer.member_tokens > len(MEMBERS) * len(ids)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (Text("", image=hostile()["a path"][0]), r"input\[1\]\.image: .*data URL alone"),
        (Text("", image=hostile()["pixels missing"][0]), r"input\[1\]\.image: .*damaged"),
        (Text("", image=hostile()["100,000 x 100,000"][0]), r"input\[1\]\.image: .*pixels"),
        (Text("what is <image> here?"), "'<image>' in it, which stands for an image"),
        (Text("my card " * 200, image=url_of(PICTURES[0])), "shorten the text"),
        (Text("a", "b"), "text_pair"),
    ],
)
async def test_what_cannot_be_read_is_refused_beside_good_inputs(
    seeing_engine: Any, given: Text, words: str
) -> None:
    refusal = await predict(seeing_engine, [asked(INPUTS[0]), given])
    assert isinstance(refusal, Refusal)
    assert (refusal.status, refusal.param) == (400, "input")
    with pytest.raises(AssertionError, match=words):
        assert not refusal.message, refusal.message

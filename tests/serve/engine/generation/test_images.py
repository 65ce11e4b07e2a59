"""Chats with images in a real engine, alone and fused at every token, against transformers and PEFT."""

import asyncio
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from serve.engine.interface import GenerateCall, PrepareError
from serve.errors import Refusal
from tests.serve import seeing
from tests.serve.engine.calls import ask, version
from tests.serve.engine.fused import TIE, Merge, averaged, multiplied
from tests.serve.engine.seeing_calls import (
    CHATS,
    CHUNK,
    MEMBERS,
    PICTURES,
    chat,
    check,
    content,
)
from tests.serve.images.hostile import hostile, url_of
from tests.serve.seeing import Family, Reference
from tests.serve.towers import pictures

pytestmark = [
    pytest.mark.engine,
    pytest.mark.slow,
    pytest.mark.asyncio(loop_scope="session"),
]

WEIGHTS = [0.1, 0.4, 0.2, 0.25, 0.05]
CONTRAST = [1.0, 0.6, -0.3, 0.2, -0.5]


async def test_members_alone_and_fused_equal_peft_with_images_and_texts_in_one_batch(
    seeing_engine: Any, seen_references: dict[str, Reference]
) -> None:
    """Cold and warm, in chunks, with all adapter slots full, prompts with no image, one and two beside each other."""
    fusions: list[tuple[dict[str, Any], Merge]] = [
        ({}, averaged([0.2] * 5)),
        (
            {"method": "weighted_average", "weights": dict(zip(MEMBERS, WEIGHTS, strict=True))},
            averaged(WEIGHTS),
        ),
        (
            {"method": "product", "weights": dict(zip(MEMBERS, CONTRAST, strict=True))},
            multiplied(CONTRAST),
        ),
    ]
    work: list[tuple[Any, dict[str, Any], Sequence[str], Merge]] = []
    for case in CHATS:
        work += [(case, {"member": name}, [name], averaged([1.0])) for name in MEMBERS]
        work += [(case, fields, MEMBERS, merge) for fields, merge in fusions]
    for seed in (1, 2):
        random.Random(seed).shuffle(work)
        answers = await asyncio.gather(
            *(ask(seeing_engine, chat(*case), **fields) for case, fields, _, _ in work)
        )
        for answer, (case, _, members, merge) in zip(answers, work, strict=True):
            check(answer, seen_references, members, case, merge)


async def test_a_vote_is_among_the_members_own_answers(seeing_engine: Any) -> None:
    for case in CHATS[:3]:
        body = {**chat(*case), "logprobs": False, "top_logprobs": None}
        voted, *alone = await asyncio.gather(
            ask(seeing_engine, body, method="vote", return_members=True),
            *(ask(seeing_engine, body, member=name) for name in MEMBERS),
        )
        assert not isinstance(voted, Refusal), voted
        own = [answer["choices"][0]["message"]["content"] for answer in alone]
        assert [each["text"] for each in voted["choices"][0]["members"]] == own
        assert voted["choices"][0]["message"]["content"] in own


async def test_a_member_may_have_a_prompt_of_its_own_beside_a_new_image(
    seeing_engine: Any, seen_references: dict[str, Reference]
) -> None:
    """Its prompt is rendered apart, with whatever images it has; twice, for the second time finds more in caches."""
    (new,) = pictures(1, seed=77)
    merge = averaged([0.2] * 5)
    messages = [{"role": "user", "content": content("look", [new])}]
    body = chat("look", [new])
    own = {"plain": "a cat"}
    for _ in range(2):
        answer = await ask(seeing_engine, body, prompts=own)
        check(answer, seen_references, MEMBERS, ("look", [new]), merge, own)
    longer = {**body, "messages": [*messages, {"role": "user", "content": "what is it?"}]}
    answer = await ask(seeing_engine, longer, prompts=own)
    assert not isinstance(answer, Refusal), answer


async def test_all_routes_read_the_same_new_image(seeing_engine: Any) -> None:
    """Each renders the prompt by itself."""
    (new,) = pictures(1, seed=78)
    body = chat("what is it?", [new], logprobs=False, top_logprobs=None)
    counted = await _route(seeing_engine, "tokenize", {"messages": body["messages"]})
    part = {"type": "input_image", "image_url": url_of(new)}
    given = [{"role": "user", "content": [part, {"type": "input_text", "text": "what is it?"}]}]
    response = {"input": given, "max_output_tokens": 8, "temperature": 0}
    responded = await _route(seeing_engine, "responses", response)
    answers = [await ask(seeing_engine, body, method=how) for how in ("average", "vote", "mbr")]
    assert not any(isinstance(each, Refusal) for each in answers), answers
    assert not isinstance(responded, Refusal), responded
    used = {each["usage"]["prompt_tokens"] for each in answers}
    assert used == {counted["count"]} == {responded["usage"]["input_tokens"]}


async def _route(seeing_engine: Any, route: Any, body: dict[str, Any]) -> Any:
    call = GenerateCall("five@1", route, body, "test")
    (part,) = [part async for part in seeing_engine.generate(call)]
    return part if isinstance(part, Refusal) else json.loads(part)


async def test_the_prompts_own_log_probabilities_equal_peft(
    seeing_engine: Any, seen_references: dict[str, Reference]
) -> None:
    """Of the tokens behind the image, by one member and fused."""
    text, images = case = CHATS[0]
    for fields, members in (({"member": "both"}, ["both"]), ({}, MEMBERS)):
        body = {**chat(*case), "prompt_logprobs": 0, "max_tokens": 1}
        answer = await ask(seeing_engine, body, **fields)
        assert not isinstance(answer, Refusal), answer
        reference = seen_references["plain"]
        behind = reference.processor.tokenizer("?", add_special_tokens=False)["input_ids"]
        given = answer["prompt_logprobs"]
        ids = reference.inputs(reference.chat(("user", text, 1)), images)["input_ids"][0].tolist()
        assert len(given) == len(ids)
        place = len(ids) - 1 - ids[::-1].index(behind[0])
        logs = [seen_references[name] for name in members]
        rows = []
        for each in logs:
            inputs = each.inputs(each.chat(("user", text, 1)), images)
            rows.append(each.model(**inputs).logits[0, place - 1].double().log_softmax(-1))
        expected = averaged([1 / len(rows)] * len(rows))(np.stack([r.detach() for r in rows]))
        said = given[place][str(ids[place])]["logprob"]
        assert abs(said - expected[ids[place]]) < 1e-3


async def test_soft_adapters_read_images_as_peft_does(
    seeing_engine: Any, seen: dict[str, Path], seen_references: dict[str, Reference]
) -> None:
    """Alone, and beside others at every token."""
    await seeing_engine.prepare(
        version(seen, "soft", {"p": "prefix", "q": "prompt", "l": "language"})
    )
    names = {
        "p": seen_references["prefix"],
        "q": seen_references["prompt"],
        "l": seen_references["language"],
    }
    for case in CHATS[:5]:
        alone = [ask(seeing_engine, chat(*case), "soft", member=name) for name in names]
        fused, *single = await asyncio.gather(ask(seeing_engine, chat(*case), "soft"), *alone)
        for name, answer in zip(names, single, strict=True):
            check(answer, names, [name], case, averaged([1.0]))
        check(fused, names, list(names), case, averaged([1 / 3] * 3))
    await seeing_engine.release("soft@1")


async def test_an_activated_lora_reads_images_unless_it_changes_what_reads_them(
    seeing_engine: Any, family: Family, seen: dict[str, Path], tmp_path: Path
) -> None:
    """Before its invocation it is the base."""
    tokenizer = Reference(seen["base"], None).processor.tokenizer
    invocation = tokenizer("ASSISTANT:", add_special_tokens=False)["input_ids"]
    targets = seeing.TARGETS[family]
    given: dict[str, Any] = {"seed": 9, "rank": 8, "invocation": invocation}
    folders = {
        name: seeing.lora(seen["base"], tmp_path / name, targets[name], **given)
        for name in ("language", "both")
    }
    late = {"a": "language", "plain": None}
    key = version({**seen, **folders}, "late", late, template="{text}{invocation}")
    await seeing_engine.prepare(key)
    reference = Reference(seen["base"], folders["language"])
    case = CHATS[0]
    answer = await ask(seeing_engine, chat(*case), "late", member="a")
    check(answer, {"a": reference}, ["a"], case, averaged([1.0]))
    fused = await ask(seeing_engine, chat(*case), "late")
    both = {"a": reference, "plain": Reference(seen["base"], None)}
    check(fused, both, ["a", "plain"], case, averaged([0.5, 0.5]))
    await seeing_engine.release("late@1")
    with pytest.raises(PrepareError, match="an activated LoRA, and changes what reads images"):
        await seeing_engine.prepare(version({**seen, **folders}, "odd", {"a": "both"}))


async def test_one_image_is_encoded_once_for_members_that_read_it_as_the_base_does(
    seeing_engine: Any,
) -> None:
    keys = seeing_engine._llm.input_processor._get_mm_identifier
    loras = {
        name: seeing_engine._adapters.alone(digest).lora
        for name, digest in _digests(seeing_engine).items()
    }
    found = {name: keys("image", lora) for name, lora in loras.items()}
    assert found["language"] == keys("image", None) == "image"
    assert len({*found.values()}) == 4


def _digests(seeing_engine: Any) -> dict[str, str]:
    return {each.name: each.digest for each in seeing_engine._adapters.loaded}


@pytest.mark.parametrize("name", hostile())
async def test_a_hostile_image_is_refused_with_a_sentence(seeing_engine: Any, name: str) -> None:
    url, _ = hostile()[name]
    body = chat("look", [PICTURES[0]])
    body["messages"][0]["content"].insert(1, {"type": "image_url", "image_url": {"url": url}})
    refusal = await ask(seeing_engine, body)
    assert isinstance(refusal, Refusal)
    assert (refusal.status, refusal.param) == (400, "messages")
    assert "Internal" not in refusal.message
    assert refusal.message.endswith(".")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"mm_processor_kwargs": {"size": {"longest_edge": 100_000}}}, "the base's own processor"),
        ({"media_io_kwargs": {"image": {"image_mode": None}}}, "the base's own processor"),
        ({"images": 9}, "8 image"),
        ({"images": [Image.new("RGB", (101, 100))]}, "101 x 100 pixels, and at most 10,000"),
        ({"images": [Image.new("RGB", (100, 100))] * 5}, "50,000 pixels together"),
        ({"uuid": "mine"}, "'uuid' in 'messages' is not accepted"),
    ],
)
async def test_what_would_take_memory_or_deceive_is_refused(
    seeing_engine: Any, change: dict[str, Any], words: str
) -> None:
    change = dict(change)
    images = change.pop("images", [PICTURES[0]])
    body = chat("look", [PICTURES[0]] * images if isinstance(images, int) else images)
    if "uuid" in change:
        body["messages"][0]["content"][0] |= change
    else:
        body |= change
    refusal = await ask(seeing_engine, body)
    assert isinstance(refusal, Refusal)
    assert refusal.status == 400
    assert words in refusal.message


async def test_a_prompt_that_ends_in_images_is_answered_or_refused(
    seeing_engine: Any, family: Family, seen_references: dict[str, Reference]
) -> None:
    """Members keep their images until all have come so far. It used to hang."""
    from vllm.exceptions import VLLMValidationError

    prompt, images = "a photo <image>", [PICTURES[0]]
    own = await rendered(seeing_engine, prompt, images)
    tokens = own["mm_placeholders"]["image"][0].get_num_embeds()
    refused = 0
    for names in (("language", "plain"), ("tower", "connector"), MEMBERS):
        copies = len({*names} - {"language"})  # the base's serves the language model's LoRA
        answering = asyncio.wait_for(lockstep(seeing_engine, names, own), 60)
        if copies * tokens > CHUNK:
            refused += 1
            with pytest.raises(VLLMValidationError, match="end in images of"):
                await answering
            continue
        written = await answering
        each = [seen_references[name].log_probs(prompt, images, written).numpy() for name in names]
        fused = np.log(np.exp(np.stack(each)).mean(axis=0))
        assert (fused.max(axis=1) - fused[np.arange(5), written]).max() < TIE
    assert refused == (tokens * 4 > CHUNK)


async def rendered(engine: Any, prompt: str, images: list[Image.Image]) -> Any:
    """A prompt as vLLM renders it. A chat would go on behind the image."""
    from vllm.renderers.inputs.preprocess import parse_model_prompt

    given = {"prompt": prompt, "multi_modal_data": {"image": images}}
    parsed = parse_model_prompt(engine._llm.model_config, given)
    renderer = engine._llm.renderer
    (own,) = await renderer.render_cmpl_async([parsed], renderer.default_cmpl_tok_params)
    return own


async def lockstep(engine: Any, names: Sequence[str], prompt: Any) -> list[int]:
    """What members write together at every token."""
    from vllm import SamplingParams

    from serve.engine.adapters.member_adapters import MemberAdapters
    from serve.engine.lockstep.client import Lockstep, MemberPrompt
    from serve.engine.lockstep.sibling_spec import TokenFusion

    pool, digests = engine._adapters, _digests(engine)
    members = [
        MemberPrompt(MemberAdapters() if name == "plain" else pool.alone(digests[name]), prompt)
        for name in names
    ]
    fusion = TokenFusion("average", (1 / len(names),) * len(names))
    params = SamplingParams(temperature=0.0, max_tokens=5, ignore_eos=True)
    tokens: list[int] = []
    async for piece in Lockstep(engine._llm).generate(members, fusion, params, "end", options={}):
        tokens = list(piece.output.outputs[0].token_ids)
    return tokens

"""`/tokenize` and `/detokenize` in a real engine, against transformers."""

import json
from pathlib import Path
from typing import Any

import pytest

from serve.base.side_files import read_tokenizer
from serve.engine.interface import GenerateCall, Route
from serve.errors import Refusal
from tests.serve.engine.calls import version

pytestmark = [pytest.mark.engine, pytest.mark.asyncio(loop_scope="session")]

TEXT = "please cancel the payment"
CHAT = [{"role": "user", "content": TEXT}]


async def asked(
    engine: Any, route: Route, body: dict[str, Any], model: str = "five", **fields: Any
) -> Any:
    call = GenerateCall(f"{model}@1", route, body, "test", **fields)
    (part,) = [part async for part in engine.generate(call)]
    return part if isinstance(part, Refusal) else json.loads(part)


@pytest.mark.parametrize("member", [None, "a"])
async def test_they_are_the_tokens_of_the_base(
    engine: Any, models: dict[str, Path], member: str | None
) -> None:
    tokenizer = read_tokenizer(str(models["base"]), None)
    ids = tokenizer(TEXT)["input_ids"]
    body = {"prompt": TEXT, "return_token_strs": True}
    answer = await asked(engine, "tokenize", body, member=member)
    assert (answer["tokens"], answer["count"], answer["max_model_len"]) == (ids, len(ids), 256)
    assert answer["token_strs"] == tokenizer.convert_ids_to_tokens(ids)
    of_chat = await asked(engine, "tokenize", {"messages": CHAT}, member=member)
    template = tokenizer.apply_chat_template(CHAT, add_generation_prompt=True, tokenize=False)
    assert of_chat["tokens"] == tokenizer(template, add_special_tokens=False)["input_ids"]
    back = await asked(engine, "detokenize", {"tokens": ids}, member=member)
    assert back == {"prompt": TEXT}


async def test_ensembles_of_every_task_have_tokens(engine: Any, models: dict[str, Path]) -> None:
    sort = {"task": "classification", "labels": ["A", "B"]}
    await engine.prepare(version(models, "sort", {"a": "a", "b": "b"}, **sort))
    assert (await asked(engine, "tokenize", {"prompt": "A"}, "sort"))["count"] == 1
    await engine.release("sort@1")


@pytest.mark.parametrize(
    ("route", "body"),
    [
        ("tokenize", {}),
        ("tokenize", {"prompt": 3}),
        ("tokenize", {"prompt": ["a", "b"]}),
        ("tokenize", {"messages": "hello"}),
        ("tokenize", {"messages": []}),
        ("tokenize", {"prompt": "x" * 40_000}),
        ("tokenize", {"messages": [{"role": "user", "content": "x" * 40_000}]}),
        ("detokenize", {}),
        ("detokenize", {"tokens": "A"}),
        ("detokenize", {"tokens": [-1]}),
        ("detokenize", {"tokens": [2**40]}),
        ("detokenize", {"tokens": [2**70]}),
    ],
    ids=str,
)
async def test_what_has_no_tokens_is_refused(engine: Any, route: Route, body: Any) -> None:
    refusal = await asked(engine, route, body)
    assert isinstance(refusal, Refusal), refusal
    assert refusal.status == 400

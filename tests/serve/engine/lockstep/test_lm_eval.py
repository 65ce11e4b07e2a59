"""`lm_eval`, unchanged, on a fused ensemble and a member: it finds what is computed from PEFT's log-probabilities."""

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from scipy.special import log_softmax

from serve.errors import Refusal
from tests.serve.engine.calls import RANKS, ask
from tests.serve.engine.fused import Judge, Merge, averaged
from tests.serve.engine.lockstep.test_prompt_rows import TIE, expected
from tests.serve.gateway.fakes import listening

pytestmark = [
    pytest.mark.engine,
    pytest.mark.slow,
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.filterwarnings("ignore"),  # what other packages warn of is theirs
]

CHOICES = [" yes", " no", " card", " my payment"]
TEXTS = ["where is my card", "please cancel", "the machine kept my card, I need a new", "A B C D"]


def served(engine: Any) -> FastAPI:
    """The route of completions over an engine, without a gateway."""
    app = FastAPI()

    async def complete(request: Request) -> JSONResponse:
        body = await request.json()
        member = body["model"].partition("/")[2] or None
        answer = await ask(engine, body, member=member)
        assert not isinstance(answer, Refusal), answer
        return JSONResponse(answer)

    app.post("/v1/completions")(complete)
    return app


def tasks(file: Path) -> list[dict[str, Any]]:
    rows = [{"text": text, "choices": CHOICES, "answer": 0} for text in TEXTS]
    file.write_text("\n".join(json.dumps(row) for row in rows))
    common = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(file)}, "cache_dir": str(file.parent)},
        "test_split": "test",
        "doc_to_text": "{{text}}",
        "target_delimiter": "",
    }
    return [
        {
            **common,
            "task": "choose",
            "output_type": "multiple_choice",
            "doc_to_choice": "{{choices}}",
            "doc_to_target": "{{answer}}",
            "metric_list": [{"metric": "acc"}],
        },
        {
            **common,
            "task": "write",
            "output_type": "generate_until",
            "doc_to_target": "yes",
            "generation_kwargs": {"until": ["\n"], "max_gen_toks": 8, "do_sample": False},
            "metric_list": [{"metric": "exact_match"}],
        },
    ]


@pytest.mark.parametrize("member", [None, "b"], ids=["fused", "member"])
async def test_its_tasks_equal_those_computed_from_peft(
    engine: Any, judge: Judge, models: dict[str, Path], tmp_path: Path, member: str | None
) -> None:
    pytest.importorskip("lm_eval")
    from lm_eval import simple_evaluate
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    members = [member] if member else [*RANKS, "plain"]
    merge = averaged([1 / len(members)] * len(members))

    def evaluated(url: str) -> Any:
        model = LocalCompletionsAPI(
            base_url=f"{url}/v1/completions",
            model=f"five/{member}" if member else "five",
            tokenizer=str(models["base"]),
            tokenizer_backend="huggingface",
            max_length=256,
            batch_size=3,
        )
        return simple_evaluate(model, tasks=tasks(tmp_path / "rows.jsonl"), log_samples=True)

    async with listening(served(engine)) as url:
        found = await asyncio.to_thread(evaluated, url)
    tokenizer = judge.tokenizer
    best = []
    for sample in found["samples"]["choose"]:
        text = sample["doc"]["text"]
        sums = []
        for choice, ((value, is_greedy),) in zip(CHOICES, sample["resps"], strict=True):
            read = len(tokenizer(text)["input_ids"])
            ids = tokenizer(text + choice)["input_ids"]
            logs = expected(judge, members, ids, merge)[read - 1 :]
            chosen = logs[np.arange(len(logs)), ids[read:]]
            assert abs(float(value) - chosen.sum()) < 1e-3
            gaps = logs.max(axis=1) - chosen
            if gaps.max() > TIE or gaps.max() == 0:
                assert str(is_greedy) == str(bool(gaps.max() == 0))
            sums.append(float(chosen.sum()))
        best.append(float(np.argmax(sums) == 0))
    assert found["results"]["choose"]["acc,none"] == pytest.approx(np.mean(best))
    for sample in found["samples"]["write"]:
        ids = tokenizer(sample["doc"]["text"])["input_ids"]
        assert sample["resps"][0][0] == _written(judge, members, merge, ids, 8)


def _written(
    judge: Judge, members: Sequence[str], merge: Merge, before: list[int], count: int
) -> str:
    """The likeliest text after some tokens, up to a new line or the end."""
    tokens: list[int] = []
    while len(tokens) < count:
        ids = [*before, *tokens]
        logits = np.stack([judge.models[name].logits(ids)[-1].double() for name in members])
        tokens.append(int(merge(log_softmax(logits, axis=-1)).argmax()))
        if tokens[-1] == judge.tokenizer.eos_token_id:
            break
    text: str = judge.tokenizer.decode(tokens, skip_special_tokens=True)
    return text.split("\n")[0].rstrip("\ufffd")  # vLLM tells no half of a character

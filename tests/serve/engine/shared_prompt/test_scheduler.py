"""Shared prompts under the scheduler with a made-up model: what is computed, and what there is room for."""

import random
from typing import Any

import pytest

from tests.serve import tiny
from tests.serve.engine.lockstep.machine import BLOCK, STOP, Machine

pytestmark = pytest.mark.engine

HEAD = 60
INVOCATIONS = [[201, 202], [201], [203, 204, 205], [206]]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """vLLM's configuration of a small engine: steps of 96 tokens, 12 sequences, 4 adapters."""
    from serve.engine.vllm_hooks.arguments import engine_args

    base = tiny.causal_base(tmp_path_factory.mktemp("shared") / "base", context=256)
    return engine_args(
        model=str(base),
        revision=None,
        kind="causal",
        dtype="float32",
        adapter_slots=4,
        host_adapters=4,
        max_lora_rank=8,
        given={"max_num_batched_tokens": 96, "max_num_seqs": 12, "block_size": BLOCK},
    ).create_engine_config()


def send(
    machine: Machine, key: str, head: list[int], *, shared: bool = True, **options: Any
) -> Any:
    """Sends four members with LoRAs, activated ones if `shared`, and the base."""
    return machine.send(
        key,
        [*(head + own for own in INVOCATIONS), head],
        adapters=[1, 2, 3, 4, None],
        invocations=[*INVOCATIONS, None] if shared else None,
        **options,
    )


def tokens(seed: int, count: int = HEAD) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(50, 200) for _ in range(count)]


def chunked(machine: Machine, size: int) -> None:
    machine.scheduler.scheduler_config.long_prefill_token_threshold = size


@pytest.fixture(autouse=True)
def whole_prompts(config: Any) -> Any:
    yield
    config.scheduler_config.long_prefill_token_threshold = 0


@pytest.mark.parametrize("depth", [1, 2], ids=["synchronous", "asynchronous"])
@pytest.mark.parametrize("chunk", [0, BLOCK, 24])
def test_one_member_computes_what_all_share(config: Any, depth: int, chunk: int) -> None:
    machine = Machine(config, depth=depth)
    chunked(machine, chunk)
    sent = send(machine, "g", tokens(1), max_tokens=1)
    machine.run()
    assert set(sent.finished) == set(sent.ids)
    tails = sum(map(len, INVOCATIONS)) + 5 * (HEAD % BLOCK)
    assert sent.computed == HEAD - HEAD % BLOCK + tails
    machine.check_idle()


def test_without_waiting_chunks_are_computed_by_every_member(
    config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The negative control for the test above."""
    from serve.engine.shared_prompt.scheduler import SharedPromptMixin

    monkeypatch.setattr(SharedPromptMixin, "_is_being_computed", lambda *_: False)
    machine = Machine(config)
    chunked(machine, BLOCK)
    sent = send(machine, "g", tokens(1), max_tokens=1)
    machine.run()
    assert sent.computed > 3 * HEAD


def test_room_for_a_shared_prompt_is_counted_once(config: Any) -> None:
    """Twenty blocks hold the prompt once, and not five times."""
    machine = Machine(config, blocks=20)
    fits = send(machine, "shared", tokens(2))
    machine.run()
    alone = send(machine, "alone", tokens(3), shared=False)
    machine.run()
    assert fits.tokens[fits.ids[0]]
    assert not fits.accounts[-1]["error"]
    assert "blocks of the KV cache" in alone.accounts[-1]["error"]
    machine.check_idle()


def test_other_loras_share_nothing(config: Any) -> None:
    machine = Machine(config)
    sent = send(machine, "g", tokens(4), shared=False, max_tokens=1)
    machine.run()
    assert sent.computed == 5 * HEAD + sum(map(len, INVOCATIONS))


@pytest.mark.parametrize("depth", [1, 2], ids=["synchronous", "asynchronous"])
def test_groups_with_shared_prompts_all_get_their_own_text(config: Any, depth: int) -> None:
    """Groups and single requests over a few prompts, in chunks, with preemption and with aborts."""
    from vllm.v1.request import RequestStatus

    rng = random.Random(depth)
    machine = Machine(config, depth=depth, blocks=40)
    chunked(machine, 24)
    aborted: set[str] = set()
    heads = [tokens(seed, rng.choice([1, 7, 8, 9, 40, 64])) for seed in range(6)]
    for index in range(150):
        head = rng.choice(heads)
        if index % 5 == 0:
            own = rng.choice(INVOCATIONS)
            machine.send(f"s{index}", [head + own], adapters=[1], invocations=[own], together=False)
        else:
            sent = send(machine, f"g{index}", head, max_tokens=rng.choice([1, 5, 30]))
            if index % 7 == 0:
                for _ in range(3):
                    machine.step()
                if sent.ids[2] in machine.scheduler.requests:
                    aborted.add(sent.ids[2])
                machine.scheduler.finish_requests(sent.ids[2], RequestStatus.FINISHED_ABORTED)
        for _ in range(rng.randrange(4)):
            machine.step()
    machine.run()
    preempted = 0
    for key, sent in machine.groups.items():
        assert set(sent.finished) == set(sent.ids) - aborted, "every stream ends"
        text = sent.tokens[sent.ids[0]]
        expected: list[int] = []
        while len(expected) < len(text):
            expected.append(machine.token(f"{key}-0", len(expected)))
        assert text == expected
        assert STOP not in text[:-1]
        preempted += sum(each["stalls"].get("preempted", 0) for each in sent.accounts)
        assert not any(each["error"] for each in sent.accounts), sent.accounts
    assert preempted, "without preemption the test shows less"
    machine.check_idle()

"""The group scheduler with a made-up model: thousands of groups in seconds, and no engine."""

import random
from collections import defaultdict
from typing import Any

import pytest

from tests.serve import tiny
from tests.serve.engine.lockstep.machine import BLOCK, STOP, Machine

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """vLLM's configuration of a small engine: chunks of 24 tokens, 12 sequences, 3 adapters."""
    from serve.engine.vllm_hooks.arguments import engine_args

    base = tiny.causal_base(tmp_path_factory.mktemp("lockstep") / "base", context=256)
    return engine_args(
        model=str(base),
        revision=None,
        kind="causal",
        dtype="float32",
        adapter_slots=3,
        host_adapters=3,
        max_lora_rank=8,
        given={"max_num_batched_tokens": 24, "max_num_seqs": 12, "block_size": BLOCK},
    ).create_engine_config()


def _prompt(rng: random.Random, length: int) -> list[int]:
    return [rng.randrange(50, 200) for _ in range(length)]


def _expected(machine: Machine, key: str, length: int) -> list[int]:
    tokens = []
    for place in range(length):
        tokens.append(machine.token(f"{key}-0", place))
        if tokens[-1] == STOP:
            break
    return tokens


DEPTHS = pytest.mark.parametrize("depth", [1, 2], ids=["synchronous", "asynchronous"])


@DEPTHS
def test_groups_and_single_requests_all_get_their_own_text(config: Any, depth: int) -> None:
    """Long prompts and short ones, prompts of one token, some after a prefix, caches warm for one member, preemption,
    full slots."""
    rng = random.Random(depth)
    machine = Machine(config, depth=depth, blocks=68)
    shared = _prompt(rng, 40)
    for index in range(120):
        size = rng.choice([1, 2, 3, 5])
        prompts = [_prompt(rng, rng.choice([1, 2, 7, 8, 9, 30, 40])) for _ in range(size)]
        if index % 3 == 0:
            prompts[0] = shared[: rng.choice([16, 17, 33, 40])]
        adapters = [rng.choice([None, 1, 2, 3]) for _ in range(size)]
        soft = {"adapters": adapters, "prefixes": [rng.choice([0, 0, 5, 8, 21]) for _ in adapters]}
        if index % 4 == 0:
            one = {name: each[:1] for name, each in soft.items()}
            machine.send(f"s{index}", prompts[:1], **one, together=False)
        else:
            machine.send(f"g{index}", prompts, **soft, max_tokens=rng.choice([1, 5, 40, 60]))
        for _ in range(rng.randrange(4)):
            machine.step()
    machine.run()
    stalls: dict[str, int] = defaultdict(int)
    for key, sent in machine.groups.items():
        text = sent.tokens[sent.ids[0]]
        assert text == _expected(machine, key, sent.length), (key, sent)
        assert set(sent.finished) == set(sent.ids), "every stream ends"
        for account in sent.accounts:
            for reason, count in account["stalls"].items():
                stalls[reason] += count
    print(f"depth {depth}: {machine.steps} steps, {machine.splits} split, stalls {dict(stalls)}")
    assert machine.splits == stalls["split"], "a split step is always undone"
    assert {"preempted", "kv_cache", "slots"} <= set(stalls), (
        "without these stalls the test shows nothing"
    )
    machine.check_idle()


@DEPTHS
def test_the_stock_scheduler_does_not_keep_step(config: Any, depth: int) -> None:
    """The negative control for the test above."""
    machine = Machine(config, depth=depth, stock=True)
    machine.send("g", [[60] * 50, [61] * 3, [62] * 20])
    machine.run()
    assert machine.splits > 0


@DEPTHS
def test_two_thousand_groups_leave_nothing_behind(config: Any, depth: int) -> None:
    """Aborts and failures of any member at any time, stops, incomplete groups, and groups that never fit."""
    from vllm.v1.request import RequestStatus

    rng = random.Random(7 + depth)
    machine = Machine(config, depth=depth, blocks=48)
    ends: dict[str, int] = defaultdict(int)
    for index in range(2000):
        size = rng.choice([2, 3, 4])
        prompts = [_prompt(rng, rng.randrange(1, 50)) for _ in range(size)]
        prefixes = [rng.choice([0, 0, 0, 7]) for _ in range(size)]
        fate = rng.choice(["run", "run", "abort", "abort", "missing", "large"])
        key = f"g{index}"
        if fate == "large":
            sent = machine.send(key, [_prompt(rng, 100) for _ in range(4)], max_tokens=100)
        else:
            missing = 1 if fate == "missing" else 0
            length = rng.randrange(1, 30)
            sent = machine.send(key, prompts, prefixes=prefixes, max_tokens=length, missing=missing)
        for _ in range(rng.randrange(6)):
            machine.step()
        if fate in ("abort", "missing"):
            victims = rng.sample(sent.ids, rng.randrange(1, size))
            # A client leaves, or a member fails inside vLLM.
            status = rng.choice([RequestStatus.FINISHED_ABORTED, RequestStatus.FINISHED_ERROR])
            machine.scheduler.finish_requests(victims, status)
            ends[fate] += 1
        if fate == "large":
            machine.step()
            assert "KV cache" in sent.accounts[-1]["error"]
            assert set(sent.finished.values()) == {"error"}
    from serve.engine.lockstep import scheduler as module

    for group in machine.scheduler._gathering.values():
        group.since -= module.GATHERING_SECONDS + 1
    machine.send("last", [[60] * 20, [61] * 2])
    machine.run(most=200_000)
    assert min(ends.values()) > 100
    for key, sent in machine.groups.items():
        expected = _expected(machine, key, sent.length)
        text = sent.tokens[sent.ids[0]]
        assert text == expected[: len(text)], "the tokens are right, however the group ended"
    assert machine.groups["last"].tokens["last-0"] == _expected(machine, "last", 8)
    machine.check_idle()


@DEPTHS
def test_a_prompt_of_one_token_after_a_prefix_waits_for_longer_siblings(
    config: Any, depth: int
) -> None:
    """It can compute nothing before its last token, although it is the longest of all."""
    machine = Machine(config, depth=depth)
    machine.send("g", [[60], [61] * 3, [62] * 50], prefixes=[40, 0, 8])
    machine.send("h", [[63], [64]], prefixes=[24, 0])
    machine.run(most=200)
    for key in ("g", "h"):
        assert machine.groups[key].tokens[f"{key}-0"] == _expected(machine, key, 8)
    assert machine.splits == 0
    machine.check_idle()


@DEPTHS
def test_a_request_without_the_salt_of_its_prefix_is_ended(config: Any, depth: int) -> None:
    """A single request, and one in a group."""
    machine = Machine(config, depth=depth)
    machine.salted = False
    machine.send("g", [[60] * 9, [61] * 3], prefixes=[0, 5])
    machine.send("s", [[60] * 9], prefixes=[5], together=False)
    machine.salted = True
    fine = machine.send("h", [[60] * 9, [61] * 3], prefixes=[0, 5])
    machine.run()
    assert machine.groups["g"].finished == {"g-0": "error", "g-1": "error"}
    assert machine.groups["s"].finished == {"s-0": "error"}
    assert not machine.groups["g"].tokens["g-0"]
    assert fine.tokens["h-0"] == _expected(machine, "h", 8)
    machine.check_idle()


def test_an_incomplete_group_neither_spins_nor_stays(
    config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from serve.engine.lockstep import scheduler as module

    machine = Machine(config)
    sent = machine.send("g", [[60] * 9, [61] * 9, [62] * 9], missing=1)
    assert not machine.scheduler.has_requests(), "the engine sleeps"
    monkeypatch.setattr(module, "GATHERING_SECONDS", -1.0)
    machine.send("s", [[60] * 4], together=False)
    machine.run()
    assert sent.finished == {"g-0": "error", "g-1": "error"}
    assert sent.accounts == [{"stalls": {"incomplete": 1}, "error": sent.accounts[0]["error"]}]
    assert machine.groups["s"].finished
    machine.check_idle()


def test_members_that_are_held_back_count_against_the_adapters(config: Any) -> None:
    """A fourth adapter must wait while three are held back; else an assertion of vLLM's ends the engine later."""
    machine = Machine(config)
    machine.send("g", [[60] * 120, [61] * 4, [62] * 4], adapters=[1, 2, 3], max_tokens=4)
    machine.step()
    machine.send("h", [[63] * 4, [64] * 4], adapters=[4, 5])
    machine.send("s", [[60] * 4], adapters=[4], together=False)
    machine.run()
    assert machine.groups["h"].accounts[0]["stalls"]["adapters"] == 1
    for key in ("g", "h", "s"):
        sent = machine.groups[key]
        assert sent.tokens[sent.ids[0]] == _expected(machine, key, sent.length)
    machine.check_idle()


@DEPTHS
def test_a_reset_of_the_cache_preempts_whole_groups(config: Any, depth: int) -> None:
    machine = Machine(config, depth=depth)
    machine.send("g", [[60] * 30, [61] * 4])
    for _ in range(5):
        machine.step()
    assert machine.scheduler.reset_prefix_cache(reset_running_requests=True)
    machine.run()
    assert machine.groups["g"].tokens["g-0"] == _expected(machine, "g", 8)
    machine.check_idle()


def with_images(config: Any, depth: int, room: int) -> Machine:
    """A machine that keeps `room` tokens of images, and encodes 24 in a step."""
    from vllm.v1.core.encoder_cache_manager import EncoderCacheManager

    machine = Machine(config, depth=depth)
    machine.scheduler.encoder_cache_manager = EncoderCacheManager(room)
    machine.scheduler.max_num_encoder_input_tokens = 24
    return machine


@DEPTHS
def test_prompts_that_end_in_images_wait_for_room_to_keep_them(config: Any, depth: int) -> None:
    """Each member's image is kept until all siblings have read theirs but for the last token."""
    machine = with_images(config, depth, 48)
    for index in range(12):
        size = 1 + index % 3
        ends = {"images": [(4, 16)] * size, "adapters": [1, 2, None][:size]}
        machine.send(f"g{index}", [[60 + index] * 20] * size, **ends)
        passed = {"images": [(2, 16)] * size, "adapters": [1, 2, 3][:size]}
        machine.send(f"h{index}", [[80 + index] * 30] * size, **passed)
        machine.send(f"s{index}", [[99] * 20], images=[(4, 16)], together=False)
    machine.run()
    stalls: dict[str, int] = defaultdict(int)
    for key, sent in machine.groups.items():
        assert sent.tokens[sent.ids[0]] == _expected(machine, key, 8), (key, sent)
        for account in sent.accounts:
            assert account["error"] is None
            for reason, count in account["stalls"].items():
                stalls[reason] += count
    assert stalls["images"]
    machine.check_idle()


@DEPTHS
def test_a_group_whose_images_never_fit_is_refused(config: Any, depth: int) -> None:
    machine = with_images(config, depth, 48)
    fits = machine.send("g", [[60] * 20] * 3, images=[(4, 16)] * 3, adapters=[1, 2, 3])
    never = machine.send("h", [[61] * 20] * 4, images=[(4, 16)] * 4, adapters=[1, 2, 3, None])
    shared = machine.send("i", [[62] * 20] * 4, images=[(4, 16)] * 4, adapters=[None] * 4)
    behind = machine.send("j", [[63] * 21] * 4, images=[(4, 16)] * 4, adapters=[1, 2, 3, None])
    machine.run()
    for key, sent in (("g", fits), ("i", shared), ("j", behind)):
        assert sent.tokens[sent.ids[0]] == _expected(machine, key, 8), key
    error = never.accounts[0]["error"]
    assert "end in images of 64 tokens together, and the engine keeps 48" in error
    assert not never.tokens["h-0"]
    machine.check_idle()

"""The group scheduler alone, with a made-up model: thousands of groups in seconds, and steps in flight as on a GPU."""

import random
import zlib
from collections import defaultdict, deque
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from tests.serve import tiny

pytestmark = pytest.mark.engine

BLOCK = 8
STOP = 7


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


@dataclass
class Sent:
    """One group, and what its streams said."""

    ids: list[str]
    length: int
    """`max_tokens`"""
    tokens: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    finished: dict[str, str] = field(default_factory=dict)
    accounts: list[dict[str, Any]] = field(default_factory=list)


class Machine:
    """A scheduler and a model whose next token depends on the group and the position alone.

    `depth` steps are in flight at once. Like vLLM's worker, the model remembers nothing of a preempted request."""

    def __init__(
        self, config: Any, *, depth: int = 1, blocks: int = 64, stock: bool = False
    ) -> None:
        from vllm.utils.hashing import sha256
        from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
        from vllm.v1.core.sched.async_scheduler import AsyncScheduler
        from vllm.v1.core.sched.scheduler import Scheduler
        from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
        from vllm.v1.structured_output import StructuredOutputManager

        from serve.engine.vllm_hooks.scheduler import AsyncChoirScheduler, ChoirScheduler

        spec = FullAttentionSpec(block_size=BLOCK, num_kv_heads=1, head_size=1, dtype=torch.float32)
        config.cache_config.num_gpu_blocks = blocks
        kind = {
            (1, False): ChoirScheduler,
            (1, True): Scheduler,
            (2, False): AsyncChoirScheduler,
            (2, True): AsyncScheduler,
        }[depth, stock]
        init_none_hash(sha256)
        self.hasher = get_request_block_hasher(BLOCK, sha256)
        self.scheduler: Any = kind(
            vllm_config=config,
            kv_cache_config=KVCacheConfig(
                num_blocks=blocks,
                kv_cache_tensors=[],
                kv_cache_groups=[KVCacheGroupSpec(["layer"], spec)],
            ),
            structured_output_manager=StructuredOutputManager(config),
            block_size=BLOCK,
            log_stats=False,
        )
        self.depth = depth
        self.flying: deque[tuple[Any, dict[str, int]]] = deque()
        self.groups: dict[str, Sent] = {}
        self.group_of: dict[str, Sent] = {}
        self.steps = 0
        self.splits = 0
        self.salted = True

    def send(
        self,
        key: str,
        prompts: list[list[int]],
        *,
        max_tokens: int = 8,
        adapters: list[int | None] | None = None,
        prefixes: list[int] | None = None,
        missing: int = 0,
        together: bool = True,
    ) -> Sent:
        """Send the siblings of one group, all but the last `missing`; or one request that is in no group.

        `prefixes`: the virtual tokens of each one's prefix adapter."""
        from vllm import SamplingParams
        from vllm.lora.request import LoRARequest
        from vllm.v1.request import Request

        from serve.engine.lockstep.sibling_spec import SiblingSpec, TokenFusion
        from serve.engine.soft.adapter import SoftAdapter
        from serve.engine.soft.salt import own_salt
        from serve.fusion.tokens.penalties import NEUTRAL
        from serve.fusion.tokens.sampling import Sampling

        size = len(prompts)
        sent = Sent([f"{key}-{rank}" for rank in range(size)], max_tokens)
        self.groups[key] = sent
        for rank, prompt in enumerate(prompts[: size - missing]):
            params = SamplingParams(
                max_tokens=max_tokens, temperature=0.0, ignore_eos=True, stop_token_ids=[STOP]
            )
            if together:
                fusion = TokenFusion("average", (1 / size,) * size)
                SiblingSpec(key, size, rank, fusion, Sampling(0.0), NEUTRAL).write_to(params)
            adapter = (adapters or [None] * size)[rank]
            soft, virtual = None, (prefixes or [0] * size)[rank]
            if virtual:
                soft = SoftAdapter("prefix", f"sha256:{virtual}", virtual)
                soft.write_to(params)
                prompt = [0] * virtual + prompt
            request = Request(
                sent.ids[rank],
                prompt,
                params,
                None,
                lora_request=adapter and LoRARequest(f"a{adapter}", adapter, "/nowhere"),
                cache_salt=own_salt(soft, adapter and f"a{adapter}") if self.salted else None,
                block_hasher=self.hasher,
            )
            self.group_of[request.request_id] = sent
            self.scheduler.add_request(request)
        return sent

    def step(self) -> None:
        """What vLLM's engine loop does once."""
        from vllm.v1.outputs import ModelRunnerOutput

        self.steps += 1
        if self.scheduler.has_requests() and len(self.flying) < self.depth:
            output = self.scheduler.schedule()
            sampled = {
                id_: _place(request)
                for id_ in output.num_scheduled_tokens
                if not (request := self.scheduler.requests[id_]).is_prefill_chunk
            }
            self._watch(output, sampled)
            self.flying.append((output, sampled))
            if len(self.flying) < self.depth and output.total_num_scheduled_tokens:
                return
        if not self.flying:
            return
        output, sampled = self.flying.popleft()
        ids = list(output.num_scheduled_tokens)
        tokens = [[self._token(id_, sampled[id_])] if id_ in sampled else [] for id_ in ids]
        result = self.scheduler.update_from_output(
            output,
            ModelRunnerOutput(
                req_ids=ids,
                req_id_to_index={id_: place for place, id_ in enumerate(ids)},
                sampled_token_ids=tokens,
                logprobs=None,
                prompt_logprobs_dict={},
                pooler_output=[],
            ),
        )
        for outputs in result.values():
            for each in outputs.outputs:
                sent = self.group_of[each.request_id]
                sent.tokens[each.request_id] += each.new_token_ids
                if each.finish_reason is not None:
                    sent.finished[each.request_id] = str(each.finish_reason)
                if each.kv_transfer_params:
                    sent.accounts.append(each.kv_transfer_params["choir_group"])

    def _watch(self, output: Any, sampled: dict[str, int]) -> None:
        by_group: dict[int, list[str]] = defaultdict(list)
        for id_ in sampled:
            by_group[id(self.group_of[id_])].append(id_)
        for ids in by_group.values():
            self.splits += len(ids) not in (0, len(self.group_of[ids[0]].ids))

    def _token(self, id_: str, place: int) -> int:
        return 2 + zlib.crc32(f"{id_.rpartition('-')[0]}:{place}".encode()) % 100

    def run(self, most: int = 5000) -> None:
        while (self.scheduler.has_requests() or self.flying) and most:
            self.step()
            most -= 1
        assert most, "the engine spins or hangs"

    def idle(self) -> None:
        """Nothing is left: no request, no group, no block."""
        scheduler = self.scheduler
        assert not scheduler.requests
        assert not scheduler.running
        assert not scheduler.waiting
        assert not scheduler.deferred_waiting
        for name in ("_group_of", "_groups", "_gathering", "_waiting_groups", "_admitted"):
            assert not getattr(scheduler, name, None), name
        for name in ("_broken", "_ended", "_last_outputs"):
            assert not getattr(scheduler, name, None), name
        pool = scheduler.kv_cache_manager.block_pool
        assert pool.get_num_free_blocks() == pool.num_gpu_blocks - 1


def _place(request: Any) -> int:
    """The output position that a step samples for a request that reaches its end in it."""
    return int(request.num_output_tokens + max(request.num_output_placeholders - 1, 0))


def _prompt(rng: random.Random, length: int) -> list[int]:
    return [rng.randrange(50, 200) for _ in range(length)]


def _expected(machine: Machine, key: str, length: int) -> list[int]:
    tokens = []
    for place in range(length):
        tokens.append(machine._token(f"{key}-0", place))
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
    machine.idle()


@DEPTHS
def test_the_stock_scheduler_does_not_keep_step(config: Any, depth: int) -> None:
    """The negative control for the one above."""
    machine = Machine(config, depth=depth, stock=True)
    machine.send("g", [[60] * 50, [61] * 3, [62] * 20])
    machine.run()
    assert machine.splits > 0


@DEPTHS
def test_two_thousand_groups_leave_nothing_behind(config: Any, depth: int) -> None:
    """Aborts and failures of any member at any time, stops, groups that never become whole, groups that never fit."""
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
            # a client that leaves, or a member that fails inside vLLM
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
    machine.idle()


@DEPTHS
def test_a_prompt_of_one_token_after_a_prefix_waits_for_longer_siblings(
    config: Any, depth: int
) -> None:
    """Nothing of it can be computed before its last token, although it is the longest of all."""
    machine = Machine(config, depth=depth)
    machine.send("g", [[60], [61] * 3, [62] * 50], prefixes=[40, 0, 8])
    machine.send("h", [[63], [64]], prefixes=[24, 0])
    machine.run(most=200)
    for key in ("g", "h"):
        assert machine.groups[key].tokens[f"{key}-0"] == _expected(machine, key, 8)
    assert machine.splits == 0
    machine.idle()


@DEPTHS
def test_a_request_without_the_salt_of_its_prefix_is_ended(config: Any, depth: int) -> None:
    """Alone, and with its whole group."""
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
    machine.idle()


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
    machine.idle()


def test_members_that_are_held_back_count_against_the_adapters(config: Any) -> None:
    """A fourth adapter must wait while three are held, or vLLM's own assertion ends the engine at their release."""
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
    machine.idle()


@DEPTHS
def test_a_reset_of_the_cache_preempts_whole_groups(config: Any, depth: int) -> None:
    machine = Machine(config, depth=depth)
    machine.send("g", [[60] * 30, [61] * 4])
    for _ in range(5):
        machine.step()
    assert machine.scheduler.reset_prefix_cache(reset_running_requests=True)
    machine.run()
    assert machine.groups["g"].tokens["g-0"] == _expected(machine, "g", 8)
    machine.idle()

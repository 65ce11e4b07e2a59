"""A made-up model under the group scheduler: steps in flight as on a GPU, without an engine."""

import zlib
from collections import defaultdict, deque
from dataclasses import dataclass, field
from typing import Any

import torch

BLOCK = 8
"""Tokens in a block of the KV cache."""
STOP = 7
"""The token that ends a text."""


@dataclass
class Sent:
    """One group, and the outputs of its streams."""

    ids: list[str]
    length: int
    """`max_tokens`"""
    tokens: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    finished: dict[str, str] = field(default_factory=dict)
    accounts: list[dict[str, Any]] = field(default_factory=list)
    computed: int = 0
    """Tokens that were computed for it, once it has ended."""


class Machine:
    """A scheduler, and a model whose next token depends only on the group and the position.

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
        invocations: list[list[int] | None] | None = None,
        images: list[tuple[int, int]] | None = None,
        missing: int = 0,
        together: bool = True,
    ) -> Sent:
        """Sends the siblings of one group, all but the last `missing`; or one request without a group.

        `prefixes`: the virtual tokens of each one's prefix adapter. `invocations`: the tokens from which each one's
        LoRA acts, if it is an activated one. `images`: where an image begins in each prompt, and its tokens."""
        from vllm import SamplingParams
        from vllm.lora.request import LoRARequest
        from vllm.v1.request import Request

        from serve.engine.lockstep.sibling_spec import SiblingSpec, TokenFusion
        from serve.engine.shared_prompt.activation import write_invocation
        from serve.engine.soft.adapter import SoftAdapter
        from serve.engine.soft.salt import own_salt
        from serve.fusion.tokens.penalties import NEUTRAL
        from serve.fusion.tokens.sampling import Sampling
        from serve.prompting.invocation import Invocation

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
            invocation = (invocations or [None] * size)[rank]
            if invocation is not None:
                write_invocation(params, Invocation(tuple(invocation), ""))
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
                lora_request=LoRARequest(f"a{adapter}", adapter, "/nowhere") if adapter else None,
                mm_features=_features(f"a{adapter}:{key}", *images[rank]) if images else None,
                cache_salt=own_salt(soft, f"a{adapter}" if adapter and not invocation else None)
                if self.salted
                else None,
                block_hasher=self.hasher,
            )
            self.group_of[request.request_id] = sent
            self.scheduler.add_request(request)
        return sent

    def step(self) -> None:
        """Does what vLLM's engine loop does once."""
        from vllm.v1.outputs import ModelRunnerOutput

        self.steps += 1
        if self.scheduler.has_requests() and len(self.flying) < self.depth:
            output = self.scheduler.schedule()
            sampled = {
                id_: _position(request)
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
        tokens = [[self.token(id_, sampled[id_])] if id_ in sampled else [] for id_ in ids]
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
                told = each.kv_transfer_params or {}
                if "choir_group" in told:
                    sent.accounts.append(told["choir_group"])
                    sent.computed = told["choir_computed"]

    def _watch(self, output: Any, sampled: dict[str, int]) -> None:
        by_group: dict[int, list[str]] = defaultdict(list)
        for id_ in sampled:
            by_group[id(self.group_of[id_])].append(id_)
        for ids in by_group.values():
            self.splits += len(ids) not in (0, len(self.group_of[ids[0]].ids))

    def token(self, id_: str, position: int) -> int:
        return 2 + zlib.crc32(f"{id_.rpartition('-')[0]}:{position}".encode()) % 100

    def run(self, most: int = 5000) -> None:
        while (self.scheduler.has_requests() or self.flying) and most:
            self.step()
            most -= 1
        assert most, "the engine spins or hangs"

    def check_idle(self) -> None:
        """Fails unless nothing is left: no request, no group, no block."""
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


def _features(key: str, start: int, tokens: int) -> list[Any]:
    """Returns one image of a request, as vLLM holds it."""
    from vllm.multimodal.inputs import MultiModalFeatureSpec, PlaceholderRange

    place = PlaceholderRange(offset=start, length=tokens)
    return [MultiModalFeatureSpec(None, "image", key, place)]


def _position(request: Any) -> int:
    """Returns the output position that a step samples for a request whose last pending token it computes."""
    return int(request.num_output_tokens + max(request.num_output_placeholders - 1, 0))

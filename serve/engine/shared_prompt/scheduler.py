"""Lets requests wait for a prompt that another one is computing, inside vLLM's own scheduler.

vLLM finds the blocks of a prompt as soon as they are scheduled, so requests that begin in one step share them by
themselves. But if a prompt is computed in chunks (`long_prefill_token_threshold`, or a prompt longer than a step), the
next request would compute the rest a second time. So it waits until the first one has come to the end of what they
share.

Hooks of vLLM 0.32's `Scheduler`, behind the version guard in `vllm_hooks/arguments.py`:
`_handle_blocked_waiting_request`, `schedule` and `_free_request` (which count what is computed).
"""

from typing import TYPE_CHECKING, Any

from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.request import Request

from serve.engine.shared_prompt.activation import request_start
from serve.engine.shared_prompt.blocks import whole_blocks
from serve.engine.shared_prompt.computed import COMPUTED, computed_tokens, count

if TYPE_CHECKING:
    from vllm.v1.core.sched.scheduler import Scheduler as _Base
else:
    _Base = object


class SharedPromptMixin(_Base):
    """A mixin for vLLM's `Scheduler` or `AsyncScheduler`; it comes first in the list of bases."""

    running: list[Request]

    def schedule(self, throttle_prefills: bool = False) -> SchedulerOutput:
        output: SchedulerOutput = super().schedule(throttle_prefills)
        for request_id, tokens in output.num_scheduled_tokens.items():
            request = self.requests.get(request_id)
            if request is not None:
                count(request, tokens)
        return output

    def _handle_blocked_waiting_request(self, request: Request) -> bool:
        ready = bool(super()._handle_blocked_waiting_request(request))
        return ready and not self._is_being_computed(request)

    def _is_being_computed(self, request: Request) -> bool:
        """Returns whether a running request computes the next block of this one, which may share it: as an activated
        LoRA or as the base."""
        shares = request.lora_request is None or request_start(request) is not None
        if request.num_computed_tokens or not shares or not self.running:
            return False
        if len(self.kv_cache_config.kv_cache_groups) > 1:
            return False  # blocks of several sizes have hashes of their own
        pool, hashes = self.kv_cache_manager.block_pool, request.block_hashes
        blocks = range(whole_blocks(request, self.block_size))
        next_ = next((n for n in blocks if not pool.get_cached_block(hashes[n], [0])), None)
        if next_ is None:
            return False
        return any(
            next_ < whole_blocks(other, self.block_size)
            and other.block_hashes[next_] == hashes[next_]
            and other.num_computed_tokens < (next_ + 1) * self.block_size
            for other in self.running
        )

    def _free_request(self, request: Request, delay_free_blocks: bool = False) -> Any:
        params, others = super()._free_request(request, delay_free_blocks)
        if request.sampling_params is not None:
            params = {**(params or {}), COMPUTED: computed_tokens(request)}
        return params, others

"""vLLM's schedulers with Choir's mixins: for shared prompts (`shared_prompt/scheduler.py`), for groups
(`lockstep/scheduler.py`), for soft adapters (`soft/scheduler.py`), and for label scoring (here).

The import installs the keys of shared blocks in the scheduler's process (`shared_prompt/hooks.py`).

vLLM computes no `prompt_logprobs` for positions that it reads from the prefix cache. Label scoring needs them from the
label's first token on. So a cache hit is cut back to the last block that ends before the label begins. The hook is
`Scheduler._get_local_prefix_cache_hit` of vLLM 0.32, behind the version guard in `arguments.py`.
"""

from typing import Any

from vllm.v1.core.kv_cache_manager import KVCacheBlocks
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import Request

from serve.engine.lockstep.scheduler import LockstepMixin
from serve.engine.shared_prompt import hooks
from serve.engine.shared_prompt.scheduler import SharedPromptMixin
from serve.engine.soft.scheduler import SoftMixin

COMPUTE_FROM = "choir_compute_from"
"""Key in `SamplingParams.extra_args`: the first position that the forward pass has to compute."""


class _ScoringMixin:
    block_size: int
    kv_cache_manager: Any

    def _get_local_prefix_cache_hit(self, request: Request) -> tuple[KVCacheBlocks, int, int, bool]:
        blocks, hit, boundary, divergent = super()._get_local_prefix_cache_hit(request)  # type: ignore[misc]
        params = request.sampling_params
        limit = (params.extra_args or {}).get(COMPUTE_FROM) if params else None
        if limit is not None and hit > limit:
            hit = limit // self.block_size * self.block_size
            blocks = self.kv_cache_manager.truncate_computed_blocks(blocks, hit)
            boundary = min(boundary, hit)
        return blocks, hit, boundary, divergent


class ChoirScheduler(SharedPromptMixin, LockstepMixin, SoftMixin, _ScoringMixin, Scheduler):
    """For engines without asynchronous scheduling (the CPU)."""


class AsyncChoirScheduler(
    SharedPromptMixin, LockstepMixin, SoftMixin, _ScoringMixin, AsyncScheduler
):
    """For engines with asynchronous scheduling (vLLM's default on GPUs)."""


hooks.install()

"""Handles requests with a soft adapter, inside vLLM's own scheduler.

Hooks of vLLM 0.32's `Scheduler`, behind the version guard in `vllm_hooks/arguments.py`: `add_request`,
`_get_local_prefix_cache_hit`, `update_from_output`, `has_finished_requests`, `has_requests`.
"""

import logging
from typing import TYPE_CHECKING, Any

from vllm.v1.core.kv_cache_manager import KVCacheBlocks
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, FinishReason
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus

from serve.engine.soft.adapter import SoftAdapter
from serve.engine.soft.connector import Missing
from serve.engine.soft.salt import salted

if TYPE_CHECKING:
    from vllm.v1.core.sched.scheduler import Scheduler as _Base
else:
    _Base = object

logger = logging.getLogger(__name__)


class SoftMixin(_Base):
    """A mixin for vLLM's `Scheduler` or `AsyncScheduler`; it comes before the base in the list of bases."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._failed: list[tuple[int, EngineCoreOutput]] = []
        """Client and last output, for requests that this class ended."""

    def add_request(self, request: Request) -> None:
        super().add_request(request)
        soft = SoftAdapter.of(request.sampling_params)
        if soft is not None and not salted(request, soft):
            # It would read cache entries of other adapters, or write entries that they read.
            logger.error("%s came without the salt of its adapter.", request.request_id)
            self._fail_request(request)

    def _get_local_prefix_cache_hit(self, request: Request) -> tuple[KVCacheBlocks, int, int, bool]:
        soft = SoftAdapter.of(request.sampling_params)
        found: tuple[KVCacheBlocks, int, int, bool]
        if soft is None or not soft.preloaded:
            found = super()._get_local_prefix_cache_hit(request)
            return found
        # A request for log-probabilities of its prompt reads no cache. vLLM would then also drop the prefix, compute
        # the placeholders instead, and cache the result for others.
        request.skip_reading_prefix_cache = request.get_skip_reading_prefix_cache()
        found = super()._get_local_prefix_cache_hit(request)
        request.skip_reading_prefix_cache = False
        return found

    def update_from_output(
        self, scheduler_output: SchedulerOutput, model_runner_output: ModelRunnerOutput
    ) -> dict[int, EngineCoreOutputs]:
        loaded = model_runner_output.kv_connector_output
        missing = loaded.kv_connector_worker_meta if loaded is not None else None
        if isinstance(missing, Missing):
            self._fail_missing(missing)
        result: dict[int, EngineCoreOutputs] = super().update_from_output(
            scheduler_output, model_runner_output
        )
        failed, self._failed = self._failed, []
        for client, output in failed:
            result.setdefault(client, EngineCoreOutputs()).outputs.append(output)
        return result

    def _fail_missing(self, missing: Missing) -> None:
        """Ends requests that were computed without their adapter, and evicts their blocks from the cache."""
        for request_id in missing.request_ids:
            request = self.requests.get(request_id)
            if request is None:
                continue
            logger.error("The adapter of %s is not in every worker.", request_id)
            blocks = {id_ for ids in self.kv_cache_manager.get_block_ids(request_id) for id_ in ids}
            self.kv_cache_manager.evict_blocks(blocks)
            self._fail_request(request)

    def _fail_request(self, request: Request) -> None:
        self.finish_requests(request.request_id, RequestStatus.FINISHED_ERROR)
        output = EngineCoreOutput(
            request_id=request.request_id, new_token_ids=[], finish_reason=FinishReason.ERROR
        )
        self._failed.append((request.client_index, output))

    def has_finished_requests(self) -> bool:
        # With a connector, vLLM counts requests outside its queues as ended ones that are still being transferred. The
        # engine would spin on a group that is still gathering. Choir never transfers anything.
        return bool(self.finished_req_ids)

    def has_requests(self) -> bool:
        return bool(self._failed) or bool(super().has_requests())

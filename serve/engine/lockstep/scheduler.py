"""Keeps the siblings of a group in step, inside vLLM's own scheduler.

There is one rule: a member computes its last pending token only when each of its siblings is one token short too. Then
all of them compute it in the same step. The rule covers prompts and cache hits of different lengths, chunked prefill,
and resumption after preemption. A group whose prompts all fit into one step need not wait.

Groups are admitted, preempted and ended as a whole. Hooks of vLLM 0.32's `Scheduler`, behind the version guard in
`vllm_hooks/arguments.py`: `schedule`, `_enqueue_waiting_request`, `_handle_blocked_waiting_request`,
`_get_local_prefix_cache_hit`, `_reserve_prefill_lookahead` (caps a chunk in both of its loops), `_preempt_request`,
`add_request`, `finish_requests`, `_free_request`, `update_from_output`, `has_requests`.
"""

import logging
import time
from collections.abc import Iterable
from typing import Any

from vllm.v1.core.kv_cache_manager import KVCacheBlocks
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, FinishReason
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus

from serve.engine.lockstep.group import Group
from serve.engine.lockstep.outputs import last_output, merge_outputs
from serve.engine.lockstep.room import Room, to_compute
from serve.engine.lockstep.sibling_spec import SiblingSpec
from serve.engine.shared_prompt.computed import computed_tokens

logger = logging.getLogger(__name__)

GATHERING_SECONDS = 10.0
"""How long a group may miss a sibling. `client.py` sends all of them at once, unless its own client has left."""

STUCK_STEPS = 16
"""After how many steps without any progress a group is ended."""

_STATUS = {
    FinishReason.STOP: RequestStatus.FINISHED_STOPPED,
    FinishReason.LENGTH: RequestStatus.FINISHED_LENGTH_CAPPED,
    FinishReason.ERROR: RequestStatus.FINISHED_ERROR,
}


class LockstepMixin(Room):
    """A mixin for vLLM's `Scheduler` or `AsyncScheduler`; it comes before the base in the list of bases."""

    running: list[Request]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._group_of: dict[str, Group] = {}
        """Request id -> its group, until the request ends."""
        self._groups: dict[str, Group] = {}
        self._gathering: dict[str, Group] = {}
        self._waiting_groups: list[Group] = []
        """In order of arrival."""
        self._admitted: dict[str, Group] = {}
        self._broken: dict[str, Group] = {}
        """Groups of which vLLM has preempted a member."""
        self._released: set[str] = set()
        """Members that may compute their last pending token in this step."""
        self._only_released = False
        """Whether only released members may compute anything in this step."""
        self._ended: dict[str, Group] = {}
        """Request id -> its group, for requests that ended since the last outputs."""
        self._last_outputs: list[tuple[int, EngineCoreOutput]] = []
        """Client and output, for requests that ended without a token of their own."""
        self._live_adapters = set()
        self._arrivals = 0
        self._stuck = 0

    # Arrival

    def add_request(self, request: Request) -> None:
        spec = SiblingSpec.of(request.sampling_params)
        if spec is None or request.request_id in self.requests:
            super().add_request(request)
            return
        group = self._groups.get(spec.group)
        if group is None:
            group = Group(spec.group, spec.size, self._arrivals, time.monotonic())
            self._arrivals += 1
            self._groups[group.key] = self._gathering[group.key] = group
        group.arrived += 1
        group.members[request.request_id] = request
        self._group_of[request.request_id] = group
        if spec.leads:
            group.leader = request.request_id
        super().add_request(request)
        if group.arrived == group.size:
            self._gathering.pop(group.key, None)
        if group.state == "ended":
            self._end(group, RequestStatus.FINISHED_ABORTED)
        elif group.arrived == group.size:
            reason = self._never_fits(group)
            if reason is not None:
                self._fail(group, "infeasible", reason)
                return
            group.state = "waiting"
            self._waiting_groups.append(group)
            for member in group.requests:
                super()._enqueue_waiting_request(member)

    def _enqueue_waiting_request(self, request: Request) -> None:
        # An incomplete group stays out of the queues: there, the engine would spin on it.
        if request.request_id not in self._group_of:
            super()._enqueue_waiting_request(request)

    # One step

    def schedule(self, throttle_prefills: bool = False) -> SchedulerOutput:
        if not self._groups:
            self._released, self._only_released = set(), False
            return super().schedule(throttle_prefills)
        self._expire()
        self._preempt_broken()
        self._release()
        self._admit()
        if self._only_released:
            self._put_first(self.requests[id_] for id_ in self._released)
        output = super().schedule(throttle_prefills)
        self._preempt_split(output)
        self._preempt_broken()
        self._resolve_deadlock(output)
        return output

    def _expire(self) -> None:
        now = time.monotonic()
        for group in list(self._gathering.values()):
            if now - group.since > GATHERING_SECONDS:
                if group.members:
                    self._fail(group, "incomplete", "Not all members of the group arrived.")
                del self._gathering[group.key]
                del self._groups[group.key]

    def _release(self) -> None:
        """Releases groups whose members are all one token short, oldest first, as long as tokens and blocks last."""
        self._released, self._only_released = set(), False
        budget = self._token_budget
        chosen: list[Group] = []
        for group in sorted(self._admitted.values(), key=lambda each: each.order):
            if group.size <= budget and all(self._one_short(r) for r in group.members.values()):
                chosen.append(group)
                budget -= group.size
        while chosen and self._blocks_for_next(chosen) > self._vacant_blocks:
            victim = self._make_room()
            if victim in chosen:
                chosen.remove(victim)
        first = [request for group in chosen for request in group.members.values()]
        self._released = {request.request_id for request in first}
        # A prompt of one token is still queued, behind all that runs: to begin it is to end it.
        self._only_released = any(request.status != RequestStatus.RUNNING for request in first)
        if first:
            running = [r for r in first if r.status == RequestStatus.RUNNING]
            self.running = running + [r for r in self.running if r.request_id not in self._released]

    def _one_short(self, request: Request) -> bool:
        if request.status != RequestStatus.RUNNING:
            return to_compute(request) == 1
        return self._left(request) == 1 and not self._at_its_end(request)

    def _make_room(self) -> Group | None:
        """Preempts what runs last: a single request, or the youngest group as a whole. Returns the group; None for a
        single request."""
        last = self.running[-1]
        if last.request_id not in self._group_of:
            self.running.pop()
            super()._preempt_request(last, time.monotonic())
            self.prev_step_scheduled_req_ids.discard(last.request_id)
            return None
        youngest = max(self._admitted.values(), key=lambda each: each.order)
        self._preempt(youngest)
        return youngest

    def _admit(self) -> None:
        """Admits groups in order of arrival, each one only if there is room for all its members."""
        admitted = list(self._admitted.values())
        self._note_adapters(admitted)
        if not self._waiting_groups:
            return
        capacity = self._measure(admitted)
        newcomers = []
        for group in self._waiting_groups:
            if not self._grammars_ready(group):
                group.hold("grammar")
                continue
            reason = capacity.refuses(group)
            if reason is not None:
                group.hold(reason)
                break
            if capacity.take(group):
                # All prompts fit into this step, so no member need wait.
                self._released.update(group.members)
            group.held = None
            group.state = "admitted"
            self._admitted[group.key] = group
            self._live_adapters |= group.adapters
            newcomers.append(group)
        if newcomers:
            self._waiting_groups = [g for g in self._waiting_groups if g not in newcomers]
            self._put_first(
                request
                for group in sorted(self._admitted.values(), key=lambda each: each.order)
                for request in sorted(group.requests, key=to_compute, reverse=True)
            )

    def _grammars_ready(self, group: Group) -> bool:
        blocked = [r for r in group.requests if self._is_blocked_waiting_status(r.status)]
        ready = [super(LockstepMixin, self)._handle_blocked_waiting_request(r) for r in blocked]
        return all(ready)

    def _put_first(self, requests: Iterable[Request]) -> None:
        """Moves those of the requests that do not run yet to the front of the queue."""
        queued = [r for r in requests if r.status != RequestStatus.RUNNING]
        self.waiting.remove_requests(queued)
        self.waiting.prepend_requests(reversed(queued))

    def _handle_blocked_waiting_request(self, request: Request) -> bool:
        group = self._group_of.get(request.request_id)
        if group is not None:
            # A group without room stops the queue in `_reserve_prefill_lookahead`; else others might overtake it for
            # ever. A group whose grammar is still being compiled lets others pass.
            return group.held != "grammar"
        adapter = request.lora_request
        if adapter and self._groups and self.lora_config:
            # vLLM does not count the adapters of members that are held back, but it will when they are released.
            live = self._live_adapters | {adapter.lora_int_id}
            if len(live) > self.lora_config.max_loras:
                return False
        return bool(super()._handle_blocked_waiting_request(request))

    def _get_local_prefix_cache_hit(self, request: Request) -> tuple[KVCacheBlocks, int, int, bool]:
        blocks, hit, boundary, divergent = super()._get_local_prefix_cache_hit(request)
        holds = request.request_id in self._group_of and request.request_id not in self._released
        if holds and hit > 0 and hit >= request.num_tokens - 1:
            # The last token is held back, and vLLM cannot schedule a chunk without tokens.
            hit = (request.num_tokens - 2) // self.block_size * self.block_size
            blocks = self.kv_cache_manager.truncate_computed_blocks(blocks, hit)
            boundary = min(boundary, hit)
        return blocks, hit, boundary, divergent

    def _reserve_prefill_lookahead(
        self, request: Request, num_computed_tokens: int, num_new_tokens: int
    ) -> int:
        count = int(
            super()._reserve_prefill_lookahead(request, num_computed_tokens, num_new_tokens)
        )
        if request.request_id in self._released:
            return count
        group = self._group_of.get(request.request_id)
        if self._only_released or (group is not None and group.state != "admitted"):
            return 0
        if group is None:
            adapter = request.lora_request
            if adapter:
                self._live_adapters.add(adapter.lora_int_id)
            return count
        last = int(request.num_tokens + request.num_output_placeholders) - 1
        return max(0, min(count, last - num_computed_tokens))

    def _preempt_split(self, output: SchedulerOutput) -> None:
        """Preempts groups of which only some members would sample in this step."""
        for group in list(self._admitted.values()):
            sampling = [
                request
                for request in group.members.values()
                if request.request_id in output.num_scheduled_tokens
                and not request.is_prefill_chunk
            ]
            if sampling and len(sampling) < group.size:
                group.hold("split")
                self._preempt(group)

    def _resolve_deadlock(self, output: SchedulerOutput) -> None:
        """If nothing could run, preempts the youngest group; after STUCK_STEPS such steps, ends the oldest one."""
        if output.total_num_scheduled_tokens or self._token_budget == 0:
            self._stuck = 0
            return
        pending = [group for group in self._waiting_groups if group.held != "grammar"]
        in_flight = any(request.num_in_flight_tokens for request in self.requests.values())
        if in_flight or not (self._admitted or pending):
            return
        self._stuck += 1
        if self._admitted:
            youngest = max(self._admitted.values(), key=lambda each: each.order)
            youngest.hold("stuck")
            if self._stuck <= STUCK_STEPS:
                self._preempt(youngest)
                return
        if self._stuck > STUCK_STEPS:
            oldest = min((*self._admitted.values(), *pending), key=lambda each: each.order)
            logger.error("A group of %d members could not be run and was ended.", oldest.size)
            self._fail(oldest, "stuck", "The members of the ensemble could not be run together.")
            self._stuck = 0

    # Preemption

    def _preempt_request(
        self, request: Request, timestamp: float, drop_stale_output: bool = False
    ) -> None:
        group = self._group_of.get(request.request_id)
        # Drops what is in flight for all siblings, because some of them may have nothing in flight.
        super()._preempt_request(request, timestamp, drop_stale_output or group is not None)
        if group is not None:
            self._broken[group.key] = group

    def _preempt_broken(self) -> None:
        broken, self._broken = self._broken, {}
        for group in broken.values():
            if group.key in self._admitted:
                self._preempt(group)

    def _preempt(self, group: Group) -> None:
        """Puts the whole group back into the queue."""
        group.hold("preempted")
        running = [r for r in group.requests if r.status == RequestStatus.RUNNING]
        self.running = [r for r in self.running if r.request_id not in group.members]
        for request in reversed(running):
            super()._preempt_request(request, time.monotonic(), True)
        for request in running:
            # It may resume in the very next step, and the worker must not think that it never stopped.
            self.prev_step_scheduled_req_ids.discard(request.request_id)
        del self._admitted[group.key]
        self._broken.pop(group.key, None)
        self._released.difference_update(group.members)
        group.state, group.held = "waiting", None
        self._waiting_groups.append(group)
        self._waiting_groups.sort(key=lambda each: each.order)

    # The end

    def update_from_output(
        self, scheduler_output: SchedulerOutput, model_runner_output: ModelRunnerOutput
    ) -> dict[int, EngineCoreOutputs]:
        result: dict[int, EngineCoreOutputs] = super().update_from_output(
            scheduler_output, model_runner_output
        )
        if self._groups or self._ended:
            self._merge_outputs(result)
        for client, output in self._last_outputs:
            result.setdefault(client, EngineCoreOutputs()).outputs.append(output)
        self._last_outputs = []
        self._ended = {}
        return result

    def _merge_outputs(self, result: dict[int, EngineCoreOutputs]) -> None:
        """Merges the siblings' outputs, and ends the groups of which a member has ended."""
        merged = merge_outputs(
            result.values(), lambda id_: self._group_of.get(id_) or self._ended.get(id_)
        )
        for group, tokens in merged.diverged:
            logger.error("The members of a group got different tokens: %s", tokens)
            if group.key in self._groups:
                self._fail(group, "diverged", "The members of the ensemble got different tokens.")
        for group, reason in merged.ended:
            self._end(group, _STATUS.get(reason, RequestStatus.FINISHED_ABORTED))

    def finish_requests(
        self, request_ids: str | Iterable[str] | None, finished_status: RequestStatus
    ) -> list[Request]:
        if isinstance(request_ids, str):
            request_ids = [request_ids]
        ids = None if request_ids is None else list(request_ids)
        groups = {group.key: group for id_ in ids or () if (group := self._group_of.get(id_))}
        finished: list[Request] = super().finish_requests(ids, finished_status)
        for group in groups.values():
            self._end(group, finished_status)
        return finished

    def _fail(self, group: Group, reason: str, message: str) -> None:
        """Ends a group with an error. `reason`: the stall to count; `message`: a sentence for the client."""
        group.stalls[reason] += 1
        group.error = message
        self._end(group, RequestStatus.FINISHED_ERROR)

    def _end(self, group: Group, status: RequestStatus) -> None:
        """Ends the remaining members of a group, and keeps a last output for each."""
        group.state = "ended"  # a gathering group stays known, for its late siblings
        for request in super().finish_requests(list(group.members), status):
            self._last_outputs.append((request.client_index, last_output(request, group)))

    def _free_request(self, request: Request, delay_free_blocks: bool = False) -> Any:
        group = self._group_of.pop(request.request_id, None)
        if group is not None:
            self._ended[request.request_id] = group
            group.members.pop(request.request_id, None)
            group.computed += computed_tokens(request)
            if not group.members:
                self._admitted.pop(group.key, None)
                self._broken.pop(group.key, None)
                if group in self._waiting_groups:
                    self._waiting_groups.remove(group)
                if group.arrived == group.size:
                    del self._groups[group.key]
        return super()._free_request(request, delay_free_blocks)

    def has_requests(self) -> bool:
        return bool(self._last_outputs) or bool(super().has_requests())

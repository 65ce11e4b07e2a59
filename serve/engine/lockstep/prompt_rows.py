"""The fused log-probabilities of a prompt's tokens, as they are computed in vLLM's workers.

vLLM computes the log-probabilities of a prompt chunk by chunk. The members of a group come to a position of the prompt
in different steps, and a distribution is large. So the hidden states of each member are kept, which are small, until
all members have read the prompt: by the rule of lockstep (`scheduler.py`) all of them read its last token in one step.
Then the members' distributions are computed and fused, a few positions at a time.

Where an adapter changes the model's head, vLLM knows which adapter a sampled row has, and not a row of a prompt. So it
is told before the head computes one request's rows (`_with_adapter`), on a CPU for single requests too.

`install` wraps `GPUModelRunner._get_prompt_logprobs_dict` of vLLM 0.32 (the CPU's runner derives from it), behind the
version guard in `vllm_hooks/arguments.py`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from vllm.lora.layers import LoRAMapping
from vllm.v1.outputs import LogprobsTensors
from vllm.v1.worker.gpu_model_runner import GPUModelRunner

from serve.engine.lockstep.processor import SLICE_BYTES, LockstepProcessor
from serve.engine.lockstep.sibling_spec import SiblingSpec
from serve.engine.soft.adapter import SoftAdapter
from serve.fusion.tokens.merge import merge

HEADS = ("embed_out", "lm_head")
"""How models call the layer that makes logits."""

_ROWS = "choir_prompt_rows"
"""Attribute of vLLM's state of a request, so that the rows go when the request goes."""


@dataclass(frozen=True)
class Sibling:
    """A member of a group whose prompt's log-probabilities are asked for."""

    request_id: str
    spec: SiblingSpec
    state: Any
    """vLLM's state of the request."""

    @property
    def virtual(self) -> int:
        """Virtual tokens before the prompt."""
        soft = SoftAdapter.of(self.state.sampling_params)
        return soft.tokens if soft else 0

    @property
    def prompt(self) -> Sequence[int]:
        """The tokens of the prompt, without virtual ones."""
        return list(self.state.prompt_token_ids[self.virtual :])

    def keep(self, hidden: torch.Tensor, start: int) -> None:
        """Keeps the hidden states of a chunk [T, H] that begins at position `start`, those of virtual tokens and of the
        prompt's last token aside: row i is what the prompt's token i + 1 is predicted from."""
        count = len(self.state.prompt_token_ids) - self.virtual - 1
        rows = getattr(self.state, _ROWS, None)
        if rows is None:
            rows = torch.zeros((count, hidden.shape[-1]), dtype=hidden.dtype)
            setattr(self.state, _ROWS, rows)
        first = start - self.virtual
        begin, end = max(first, 0), min(first + len(hidden), count)
        if begin < end:
            rows[begin:end] = hidden[begin - first : end - first].cpu()

    @property
    def rows(self) -> torch.Tensor:
        """[tokens of the prompt - 1, H], once the prompt was read."""
        rows: torch.Tensor = getattr(self.state, _ROWS)
        return rows


def install() -> None:
    """Makes vLLM's model runner report the fused log-probabilities of a group's prompt, as those of its leader."""
    of_requests = GPUModelRunner._get_prompt_logprobs_dict

    def of_requests_and_groups(
        self: Any, hidden_states: torch.Tensor, num_scheduled_tokens: Mapping[str, int]
    ) -> dict[str, LogprobsTensors | None]:
        siblings = _siblings(self)
        for id_ in siblings:
            del self.num_prompt_logprobs[id_]
        found = _of_requests(self, of_requests, hidden_states, num_scheduled_tokens)
        groups: dict[str, list[Sibling]] = {}
        for id_, (sibling, asked) in siblings.items():
            start, scheduled = sibling.state.num_computed_tokens, num_scheduled_tokens.get(id_)
            if scheduled is not None and start >= sibling.state.num_prompt_tokens:
                continue  # it writes by now, so its group's log-probabilities have arrived
            self.num_prompt_logprobs[id_] = asked
            if scheduled is None:
                continue
            row = self.input_batch.req_id_to_index[id_]
            first = self.query_start_loc.np[row].item()
            sibling.keep(hidden_states[first : first + scheduled], start)
            samples = not self.discard_request_mask.np[row]
            if samples and len(sibling.state.output_token_ids) == 1:
                groups.setdefault(sibling.spec.group, []).append(sibling)
        for group in groups.values():
            if len(group) == group[0].spec.size:
                group.sort(key=lambda each: each.spec.rank)
                found[group[0].request_id] = fused(self, group)
        return found

    GPUModelRunner._get_prompt_logprobs_dict = of_requests_and_groups


def _of_requests(
    runner: Any,
    of_requests: Callable[..., dict[str, LogprobsTensors | None]],
    hidden_states: torch.Tensor,
    num_scheduled_tokens: Mapping[str, int],
) -> dict[str, LogprobsTensors | None]:
    """Returns what vLLM reports of requests in no group. Where an adapter changes the head, one request after the
    other."""
    asked = runner.num_prompt_logprobs
    if not asked or runner.device.type != "cpu" or not _changes_head(runner):
        return of_requests(runner, hidden_states, num_scheduled_tokens)
    found: dict[str, LogprobsTensors | None] = {}
    left: dict[str, int] = {}
    for id_, count in asked.items():
        runner.num_prompt_logprobs = {id_: count}
        if rows := num_scheduled_tokens.get(id_):
            _with_adapter(runner, runner.requests[id_], rows)
        found |= of_requests(runner, hidden_states, num_scheduled_tokens)
        left |= runner.num_prompt_logprobs
    runner.num_prompt_logprobs = left
    return found


def _changes_head(runner: Any) -> bool:
    """Returns whether an adapter in a slot is a LoRA on the layer that makes logits."""
    if not runner.lora_config:
        return False
    manager = runner.lora_manager._adapter_manager
    loras = [manager.get_adapter(id_).loras for id_ in manager.lora_index_to_id if id_ is not None]
    return any(name.rpartition(".")[2] in HEADS for each in loras for name in each)


def _with_adapter(runner: Any, state: Any, rows: int) -> None:
    """Makes the head compute the next rows with a request's adapter. vLLM maps rows to adapters anew in each step."""
    lora = state.lora_request
    each = (lora.lora_int_id if lora else 0,) * rows
    manager = runner.lora_manager._adapter_manager
    manager.set_adapter_mapping(LoRAMapping(each, each, is_prefill=True))


def _siblings(runner: Any) -> dict[str, tuple[Sibling, int]]:
    """Returns the members of groups among the requests for log-probabilities of their prompt, by request id, each with
    how many tokens it asks for."""
    found = {}
    for id_, asked in runner.num_prompt_logprobs.items():
        state = runner.requests[id_]
        spec = SiblingSpec.of(state.sampling_params)
        if spec is not None:
            found[id_] = (Sibling(id_, spec, state), asked)
    return found


def fused(runner: Any, group: Sequence[Sibling]) -> LogprobsTensors:
    """Returns the fused log-probabilities of the prompt's tokens from the second one on, as vLLM returns a request's:
    the token's own and those of the likeliest tokens.

    `group`: all members by rank; they have read equal prompts."""
    leader = group[0]
    fusion = leader.spec.fusion
    device = runner.device
    targets = torch.tensor(leader.prompt[1:], dtype=torch.int64, device=device)
    weights = torch.tensor([fusion.weights], dtype=torch.float32, device=device)
    plausibility = torch.tensor([fusion.plausibility], dtype=torch.float32, device=device)
    top = runner.num_prompt_logprobs[leader.request_id]
    whole = LogprobsTensors.empty_cpu(len(targets), top + 1)
    at_once = max(1, SLICE_BYTES // (4 * len(group) * runner.input_batch.vocab_size))
    changes = _changes_head(runner)
    if changes:
        at_once = min(at_once, runner.max_num_reqs)  # vLLM has no room for more
    with _processor(runner).room():
        for start in range(0, len(targets), at_once):
            part = slice(start, start + at_once)
            members = torch.stack(
                [_distributions(runner, each, part, changes) for each in group], dim=1
            )
            count = len(members)
            log_probs = merge(
                members, weights.expand(count, -1), fusion.method, plausibility.expand(count)
            )
            ids, values, ranks, *_ = runner.sampler.gather_logprobs(log_probs, top, targets[part])
            whole.logprob_token_ids[part].copy_(ids)
            whole.logprobs[part].copy_(values)
            whole.selected_token_ranks[part].copy_(ranks)
    return whole


def _distributions(runner: Any, sibling: Sibling, part: slice, changes_head: bool) -> torch.Tensor:
    """Returns a member's log-probabilities at some positions of its prompt, [P, V]."""
    rows = sibling.rows[part]
    if changes_head:
        _with_adapter(runner, sibling.state, len(rows))
    logits = runner.model.compute_logits(rows.to(runner.device))
    log_probs: torch.Tensor = runner.sampler.compute_logprobs(logits)
    return log_probs


def _processor(runner: Any) -> LockstepProcessor:
    """Returns Choir's logits processor in the runner."""
    processors = runner.input_batch.logitsprocs.non_argmax_invariant
    return next(each for each in processors if isinstance(each, LockstepProcessor))

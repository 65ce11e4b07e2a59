"""What runs inside vLLM's worker processes: vLLM imports this module there, because it is its worker extension.

Two faults of vLLM 0.32 are repaired on import, its sampler learns to report fused log-probabilities
(`lockstep/logprobs.py`), and its runner to take the vectors of prompt adapters (`soft/inputs.py`), each behind the
version guard in `arguments.py`:

- LoRA on the CPU: rows without an adapter index the last adapter slot (`lora_cpu`).
- A batch in which some requests name the tokens whose log-probabilities they want (`logprob_token_ids`, which label
  scoring uses) and others want the top k (`logprobs`, which OpenAI clients use) loses the latter (`repair_sampler`).
"""

from typing import Any

import torch
from vllm.config import VllmConfig
from vllm.v1.outputs import LogprobsTensors
from vllm.v1.sample.metadata import SamplingMetadata
from vllm.v1.sample.sampler import Sampler

from serve.engine.lockstep import logprobs
from serve.engine.soft import inputs
from serve.engine.soft.adapter import SoftKind
from serve.engine.soft.store import STORE, SoftError
from serve.engine.vllm_hooks import lora_cpu


class ChoirWorker:
    """Mixed into vLLM's worker class; the front end calls these in all workers (`collective_rpc`)."""

    model_runner: Any
    vllm_config: VllmConfig

    def modules_left_out(self, lora_id: int) -> list[str]:
        """Modules of a loaded LoRA that vLLM's model has no layer for in this worker, and passes over."""
        manager = self.model_runner.lora_manager._adapter_manager
        lora = manager.get_adapter(lora_id)
        assert lora is not None, f"the LoRA {lora_id} has just been loaded"
        there = set(manager.modules)
        if manager.is_pooling_model:
            there |= {name.removeprefix("model.") for name in there}
        return sorted(set(lora.loras) - there)

    def load_soft(self, digest: str, kind: SoftKind, folder: str) -> int | str:
        """The number of virtual tokens, or why the adapter cannot be held: refusals cross processes as values."""
        cache = self.model_runner.kv_cache_config
        try:
            return STORE.load(digest, kind, folder, self.vllm_config, cache)
        except SoftError as error:
            return str(error)

    def unload_soft(self, digest: str) -> int:
        """Drop the adapter; the bytes of host memory that others still take."""
        STORE.unload(digest)
        return STORE.bytes


def repair_sampler() -> None:
    """Let requests with `logprob_token_ids` and requests with `logprobs` share a batch."""
    forward, gather = Sampler.forward, Sampler.gather_specific_token_logprobs

    def forward_remembering_top_k(
        self: Any,
        logits: torch.Tensor,
        sampling_metadata: SamplingMetadata,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        self.choir_top_k = sampling_metadata.max_num_logprobs
        return forward(self, logits, sampling_metadata, *args, **kwargs)

    def gather_both(
        self: Any,
        logprobs: torch.Tensor,
        logprob_token_ids: dict[int, list[int]],
        sampled: torch.Tensor,
    ) -> LogprobsTensors | None:
        specific = gather(self, logprobs, logprob_token_ids, sampled)
        top_k = self.choir_top_k
        others = [row for row in range(logprobs.shape[0]) if row not in logprob_token_ids]
        if specific is None or not top_k or not others:
            return specific
        return with_top_k(specific, logprobs, others, top_k)

    Sampler.forward = forward_remembering_top_k
    Sampler.gather_specific_token_logprobs = gather_both


def with_top_k(
    specific: LogprobsTensors, logprobs: torch.Tensor, rows: list[int], top_k: int
) -> LogprobsTensors:
    """`specific` [batch, 1 + ids] with the k most likely tokens of `logprobs` [batch, vocabulary] in `rows`.

    Column 0, the sampled token, stays. Columns are added where k is larger than the number of ids; vLLM's front end
    reads from each row as many as its request asked for."""
    k = min(logprobs.shape[-1] if top_k < 0 else top_k, logprobs.shape[-1])
    ids, values = specific.logprob_token_ids, specific.logprobs
    missing = k + 1 - values.shape[1]
    if missing > 0:
        ids = torch.nn.functional.pad(ids, (0, missing))
        values = torch.nn.functional.pad(values, (0, missing), value=float("-inf"))
    row_index = torch.tensor(rows, device=logprobs.device)
    best, best_ids = logprobs[row_index].topk(k, dim=-1)
    values[row_index, 1 : k + 1] = best.to(values.dtype)
    ids[row_index, 1 : k + 1] = best_ids.to(ids.dtype)
    return specific._replace(logprob_token_ids=ids, logprobs=values)


lora_cpu.repair()
repair_sampler()
logprobs.install()
inputs.install()

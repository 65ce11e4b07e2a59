"""What runs inside vLLM's worker processes. vLLM imports this module there as its worker extension.

The import installs Choir's changes to vLLM 0.32, each behind the version guard in `arguments.py`:

- The sampler reports fused log-probabilities (`lockstep/logprobs.py`), and the model runner those of a group's prompt
  (`lockstep/prompt_rows.py`).
- The model runner uses the vectors of prompt adapters (`soft/inputs.py`).
- An activated LoRA leaves the tokens before its invocation to the base (`shared_prompt/hooks.py`).
- The pooler leaves vectors as they are (`plain_pooling.py`).
- The registry finds the backbones of published encoders, and CLIP and SigLIP with LoRA (`models.py`).
- LoRA on the CPU is repaired: rows without an adapter used the last adapter slot (`lora_cpu.py`).
- The sampler is repaired (`repair_sampler`). Label scoring names the tokens whose log-probabilities it wants
  (`logprob_token_ids`); OpenAI clients want the top k (`logprobs`). A batch with both lost the latter.
- The process writes down what ends it (`core_process/start_failure.py`).
"""

from typing import Any

import torch
from vllm.config import VllmConfig
from vllm.v1.outputs import LogprobsTensors
from vllm.v1.sample.metadata import SamplingMetadata
from vllm.v1.sample.sampler import Sampler

from serve.engine.core_process import start_failure
from serve.engine.lockstep import logprobs, prompt_rows
from serve.engine.shared_prompt import hooks
from serve.engine.soft import inputs
from serve.engine.soft.adapter import SoftKind
from serve.engine.soft.store import STORE, SoftError
from serve.engine.vllm_hooks import lora_cpu, models, plain_pooling


class ChoirWorker:
    """A mixin for vLLM's worker class. The front end calls its methods in all workers (`collective_rpc`)."""

    model_runner: Any
    vllm_config: VllmConfig

    def modules_left_out(self, lora_id: int) -> list[str]:
        """Returns the modules of a loaded LoRA that vLLM ignores, because its model has no layer for them in this
        worker."""
        manager = self.model_runner.lora_manager._adapter_manager
        lora = manager.get_adapter(lora_id)
        assert lora is not None, f"the LoRA {lora_id} has just been loaded"
        known = set(manager.modules)
        if manager.is_pooling_model:
            known |= {name.removeprefix("model.") for name in known}
        return sorted(set(lora.loras) - known)

    def changes_images(self, lora_id: int) -> bool:
        """Returns whether a loaded LoRA changes what reads images: the vision tower, or what makes tokens of it."""
        manager = self.model_runner.lora_manager._adapter_manager
        lora = manager.get_adapter(lora_id)
        assert lora is not None, f"the LoRA {lora_id} has just been loaded"
        if not manager.supports_mm:
            return False
        parts = [*manager.mm_mapping.tower_model, *manager.mm_mapping.connector]
        language = manager.mm_mapping.language_model[0]
        return any(_is_of(name, parts, language) for name in lora.loras)

    def load_soft(self, digest: str, kind: SoftKind, folder: str) -> int | str:
        """Loads a soft adapter. Returns the number of its virtual tokens, or why this worker cannot hold it.

        A refusal is a value, because exceptions lose their type between processes."""
        cache = self.model_runner.kv_cache_config
        try:
            return STORE.load(digest, kind, folder, self.vllm_config, cache)
        except SoftError as error:
            return str(error)

    def unload_soft(self, digest: str) -> int:
        """Drops a soft adapter. Returns the bytes of host memory that the others still take."""
        STORE.unload(digest)
        return STORE.bytes


def _is_of(module: str, parts: list[str], language: str) -> bool:
    """Returns whether a module belongs to one of the parts, by vLLM's rule: the longest prefix of its name decides."""
    longest = max((p for p in (*parts, language) if module.startswith(p)), key=len, default="")
    return longest in parts


def repair_sampler() -> None:
    """Makes vLLM's sampler serve requests with `logprob_token_ids` and requests with `logprobs` in one batch."""
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
    """Returns `specific` [batch, 1 + ids] with the k most likely tokens of `logprobs` [batch, vocabulary] in `rows`.

    Column 0, the sampled token, stays. If k is larger than the number of ids, adds columns; vLLM's front end reads from
    each row as many as its request asked for."""
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
plain_pooling.install()
repair_sampler()
logprobs.install()
prompt_rows.install()
inputs.install()
hooks.install()
models.register()
start_failure.watch_worker()

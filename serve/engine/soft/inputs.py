"""Prompt tuning in vLLM: an adapter's vectors take the place of its virtual tokens' embeddings, inside each worker.

vLLM's model runner can mix embeddings into its inputs (`enable_prompt_embeds`). It is switched on in the runner alone:
vLLM's front end would otherwise take embeddings from clients and reserve a token for them. The vectors come from the
worker's store, by digest, so that no request carries them.

`install` touches vLLM 0.32's `GPUModelRunner` (the CPU's derives from it), `InputBatch` and `LogprobsTensors`, behind
the version guard in `arguments.py`.
"""

from typing import Any

from vllm.config import VllmConfig
from vllm.v1.outputs import LogprobsTensors
from vllm.v1.worker.gpu_input_batch import CachedRequestState, InputBatch
from vllm.v1.worker.gpu_model_runner import GPUModelRunner

from serve.engine.soft.adapter import SoftAdapter
from serve.engine.soft.store import STORE

SWITCH = "choir_prompt_adapters"
"""Key in vLLM's `additional_config`, which also keeps compiled graphs with and without embeddings apart."""


def install() -> None:
    """Let the runner take the vectors of prompt adapters, and forget virtual tokens where they do not count."""
    start, add_request = GPUModelRunner.__init__, InputBatch.add_request
    empty_cpu = LogprobsTensors.empty_cpu

    def start_with_embeddings(
        self: Any, vllm_config: VllmConfig, *args: Any, **kwargs: Any
    ) -> None:
        start(self, vllm_config, *args, **kwargs)
        if vllm_config.additional_config.get(SWITCH):
            self.enable_prompt_embeds = True

    def add_request_with_virtual_tokens(self: Any, request: CachedRequestState) -> int:
        row: int = add_request(self, request)
        soft = SoftAdapter.of(request.sampling_params)
        vectors = STORE.get(soft.digest) if soft else None
        if soft is None or vectors is None:  # the connector reports a missing adapter
            return row
        # the id that pads the prompts which vLLM's penalties look at: it counts as no token
        self.token_ids_cpu[row, : soft.tokens] = self.vocab_size
        if soft.kind == "prompt":
            self.is_token_ids[row, : soft.tokens] = False
            self.req_prompt_embeds[row] = vectors
        return row

    def empty_of_zeros(positions: int, columns: int) -> LogprobsTensors:
        # log-probabilities of a loaded prefix are never computed, and what memory happened to hold is no token id
        tensors: LogprobsTensors = empty_cpu(positions, columns)
        tensors.logprob_token_ids.zero_()
        tensors.logprobs.zero_()
        tensors.selected_token_ranks.zero_()
        return tensors

    GPUModelRunner.__init__ = start_with_embeddings
    InputBatch.add_request = add_request_with_virtual_tokens
    LogprobsTensors.empty_cpu = staticmethod(empty_of_zeros)

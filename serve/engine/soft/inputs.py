"""Prompt tuning in vLLM: in each worker, an adapter's vectors replace the embeddings of its virtual tokens.

vLLM's model runner can mix embeddings into its inputs (`enable_prompt_embeds`). Choir switches that on in the runner
alone. In the front end, it would make vLLM accept embeddings from clients and reserve a token for them. The vectors
come from the worker's store, by digest, so no request carries them.

`install` touches vLLM 0.32's `GPUModelRunner` (the CPU's derives from it), `InputBatch` and `LogprobsTensors`, behind
the version guard in `vllm_hooks/arguments.py`.
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
    """Makes the runner use the vectors of prompt adapters, and hides virtual tokens from vLLM's penalties."""
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
        # vLLM pads the prompts that its penalties read with this id, so it counts as no token.
        self.token_ids_cpu[row, : soft.tokens] = self.vocab_size
        if soft.kind == "prompt":
            self.is_token_ids[row, : soft.tokens] = False
            self.req_prompt_embeds[row] = vectors
        return row

    def empty_of_zeros(positions: int, columns: int) -> LogprobsTensors:
        # vLLM never computes the log-probabilities of a loaded prefix, and uninitialised memory holds no valid token
        # id.
        tensors: LogprobsTensors = empty_cpu(positions, columns)
        tensors.logprob_token_ids.zero_()
        tensors.logprobs.zero_()
        tensors.selected_token_ranks.zero_()
        return tensors

    GPUModelRunner.__init__ = start_with_embeddings
    InputBatch.add_request = add_request_with_virtual_tokens
    LogprobsTensors.empty_cpu = staticmethod(empty_of_zeros)

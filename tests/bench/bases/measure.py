"""What vLLM's model of a base answers under a LoRA, against PEFT and transformers in float32."""

import gc
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from serve.adapter import plain_adapter
from serve.base.folder import BaseKind, BaseShapes
from tests.bench.bases.candidates import POSITIONS, VOCABULARY, Candidate

LENGTHS = (3, 11, POSITIONS)


def difference(candidate: Candidate, kind: BaseKind, folder: Path) -> float:
    """The largest absolute difference of pooled vectors (heads) or of log-probabilities of the next token (text), over
    their standard deviation by PEFT; with the adapter and without it."""
    base, adapter = folder / "base", folder / "adapter"
    if not base.exists():
        candidate.make_base(base)
    expected = _by_peft(candidate, kind, base, adapter)
    with plain_adapter(adapter, BaseShapes.read(base), kind) as plain:
        found = _by_vllm(kind, base, plain)
    assert np.abs(expected[0] - expected[1]).max() > 0.1 * expected.std(), "the adapter must show"
    return float(np.abs(found - expected).max() / expected.std())


def rows_of(kind: BaseKind) -> list[list[int]]:
    """Token ids of texts, the last of which takes all positions, but for that of the token that a text asks for."""
    rows = [
        [0, *(3 + (7 * length + 11 * place) % (VOCABULARY - 3) for place in range(length - 2)), 2]
        for length in LENGTHS
    ]
    return rows if kind == "encoder" else [row[: POSITIONS - 1] for row in rows]


def _by_peft(
    candidate: Candidate, kind: BaseKind, base: Path, adapter: Path
) -> NDArray[np.float64]:
    """[with and without the adapter, rows, values]"""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModel, AutoModelForCausalLM

    causal = "ForCausalLM" in candidate.architecture
    loader = AutoModelForCausalLM if causal else AutoModel
    # Gemma2's cap of the attention's logits is left out by the faster implementations
    model: Any = loader.from_pretrained(base, dtype=torch.float32, attn_implementation="eager")
    targets = candidate.targets if isinstance(candidate.targets, str) else list(candidate.targets)
    torch.manual_seed(1)
    options = {"r": 4, "lora_alpha": 8, "target_modules": targets, "exclude_modules": ".*pooler.*"}
    peft = get_peft_model(model, LoraConfig(**options, task_type="CAUSAL_LM" if causal else None))
    for name, weight in peft.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.2)
    peft.save_pretrained(adapter)
    peft.eval()

    def answer(ids: list[int]) -> NDArray[np.float64]:
        with torch.inference_mode():
            given = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids))}
            if kind == "causal":
                return np.asarray(peft(**given).logits[0, -1].double().log_softmax(-1))
            states = peft.base_model.model.base_model(**given).last_hidden_state[0]
            return np.asarray((states[-1] if causal else states.mean(0)).double())

    rows = rows_of(kind)
    adapted = [answer(ids) for ids in rows]
    with peft.disable_adapter():
        plain = [answer(ids) for ids in rows]
    return np.array([adapted, plain])


def _by_vllm(kind: BaseKind, base: Path, adapter: Path) -> NDArray[np.float64]:
    """The same by the engine's own model and worker, in this process."""
    from vllm import PoolingParams, SamplingParams
    from vllm.distributed import cleanup_dist_env_and_memory
    from vllm.inputs import TokensPrompt
    from vllm.lora.request import LoRARequest
    from vllm.v1.engine.llm_engine import LLMEngine

    from serve.engine.vllm_hooks.arguments import engine_args

    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    given = {
        "enforce_eager": True,
        "kv_cache_memory_bytes": 8 << 20,
        "max_num_batched_tokens": 256,
        "max_num_seqs": 8,
        **({"max_logprobs": -1} if kind == "causal" else {}),
    }
    args = engine_args(
        model=str(base),
        revision=None,
        kind=kind,
        dtype="float32",
        adapter_slots=1,
        host_adapters=1,
        max_lora_rank=8,
        given=given,
    )
    args.skip_tokenizer_init = True  # the bases have none
    engine = LLMEngine.from_engine_args(args)
    try:
        request = LoRARequest("adapter", 1, str(adapter))
        outputs: dict[str, Any] = {}
        for number, ids in enumerate(rows_of(kind)):
            params = (
                SamplingParams(max_tokens=1, temperature=0, logprobs=-1, detokenize=False)
                if kind == "causal"
                else PoolingParams(task="embed", use_activation=False)
            )
            for name, lora in (("adapted", request), ("plain", None)):
                prompt = TokensPrompt(prompt_token_ids=ids)
                engine.add_request(f"{name}-{number}", prompt, params, lora_request=lora)
        while engine.has_unfinished_requests():
            outputs |= {each.request_id: each for each in engine.step() if each.finished}
        return np.array(
            [
                [_values(outputs[f"{name}-{number}"], kind) for number in range(len(LENGTHS))]
                for name in ("adapted", "plain")
            ]
        )
    finally:
        engine.engine_core.shutdown()
        del engine
        cleanup_dist_env_and_memory()
        gc.collect()


def _values(output: Any, kind: BaseKind) -> NDArray[np.float64]:
    if kind == "encoder":
        return np.asarray(output.outputs.data.double().numpy())
    found = output.outputs[0].logprobs[0]
    return np.array([found[token].logprob for token in range(VOCABULARY)])

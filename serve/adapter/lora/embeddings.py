"""The layers that turn tokens into vectors and back: where vLLM takes LoRA on them, and what PEFT calls them."""

from typing import Any

LAYERS = frozenset({"embed_in", "embed_out", "embed_tokens", "lm_head", "word_embeddings", "wte"})
"""Names of input and output embeddings, whose whole weights PEFT may store beside a LoRA."""
_OUTPUTS = ("embed_out", "lm_head")
_BOTH = frozenset({"embed_tokens", "lm_head"})
_TAKEN = {
    **dict.fromkeys(
        (
            "ApertusForCausalLM",
            "DeciLMForCausalLM",
            "Ernie4_5ForCausalLM",
            "Exaone4ForCausalLM",
            "ExaoneMoeForCausalLM",
            "FalconH1ForCausalLM",
            "GraniteForCausalLM",
            "GraniteMoeForCausalLM",
            "GraniteMoeHybridForCausalLM",
            "GraniteMoeSharedForCausalLM",
            "HyperCLOVAXForCausalLM",
            "IQuestCoderForCausalLM",
            "InternLM3ForCausalLM",
            "JambaForCausalLM",
            "LLaMAForCausalLM",
            "Lfm2ForCausalLM",
            "Lfm2MoeForCausalLM",
            "LlamaForCausalLM",
            "MiniCPM3ForCausalLM",
            "MiniCPMForCausalLM",
            "MixtralForCausalLM",
            "NemotronForCausalLM",
            "NemotronHForCausalLM",
            "Phi3ForCausalLM",
            "PhiMoEForCausalLM",
            "Qwen3ForCausalLM",
            "Qwen3MoeForCausalLM",
            "SolarForCausalLM",
            "TeleChat2ForCausalLM",
            "TeleChat3ForCausalLM",
            "TeleFLMForCausalLM",
        ),
        _BOTH,
    ),
    "Cohere2ForCausalLM": frozenset({"embed_tokens"}),
    "CohereForCausalLM": frozenset({"embed_tokens"}),
    "ExaoneForCausalLM": frozenset({"lm_head", "wte"}),
}
"""By architecture, as vLLM 0.32 has it (`embedding_modules` of its models); it refuses them in all others."""


def unserved_embedding(config: dict[str, Any], module: str, *, embedding: bool) -> str | None:
    """Why LoRA on a module is not served over a base with this `config.json`, as a sentence; None if nothing is known
    against it. `embedding`: the module is looked up in, not multiplied with."""
    last = module.rpartition(".")[2]
    architectures = config.get("architectures") or []
    if not architectures or not (embedding or last in _OUTPUTS):
        return None
    if last in _TAKEN.get(architectures[0], frozenset()):
        return None
    return (
        f"LoRA on {module!r} is not served over a base of the architecture {architectures[0]}, in which vLLM takes "
        "LoRA on linear layers alone; train without it."
    )

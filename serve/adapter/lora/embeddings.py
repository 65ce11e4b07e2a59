"""Input and output embeddings: where vLLM takes LoRA on them, and what PEFT calls them."""

from typing import Any

LAYERS = frozenset({"embed_in", "embed_out", "embed_tokens", "lm_head", "word_embeddings", "wte"})
"""The names of input and output embeddings. PEFT may store their whole weights beside a LoRA."""
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
"""Architecture -> the embeddings on which vLLM 0.32 takes LoRA (`embedding_modules` of its models). All others refuse
it."""


def unserved_embedding(config: dict[str, Any], module: str, *, embedding: bool) -> str | None:
    """Returns why LoRA on a module is not served over a base with this `config.json`, in a sentence; None if there is
    no reason. `embedding` says that the module is a table in which tokens are looked up."""
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

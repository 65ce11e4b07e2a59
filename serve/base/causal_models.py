"""The causal models of vLLM 0.32 that take LoRA, by the architecture in a base's `config.json`.

Read in vLLM's source; a test holds them against it. Other models of vLLM's cannot run an adapter."""

TEXT = frozenset(
    """
    AfmoeForCausalLM ApertusForCausalLM ArceeForCausalLM AXK1ForCausalLM BailingMoeForCausalLM
    BailingMoeV2ForCausalLM Cohere2ForCausalLM CohereForCausalLM CwmForCausalLM DeciLMForCausalLM
    DeepseekForCausalLM DeepseekV2ForCausalLM DeepseekV32ForCausalLM DeepseekV3ForCausalLM
    DeepseekV4ForCausalLM Ernie4_5_MoeForCausalLM Ernie4_5ForCausalLM Exaone4ForCausalLM
    ExaoneForCausalLM ExaoneMoeForCausalLM ExaoneMoEForCausalLM FalconH1ForCausalLM
    FlexOlmoForCausalLM Gemma2ForCausalLM Gemma3ForCausalLM Gemma4ForCausalLM GemmaForCausalLM
    Glm4ForCausalLM Glm4MoeForCausalLM Glm4MoeLiteForCausalLM GlmForCausalLM GlmMoeDsaForCausalLM
    GPTBigCodeForCausalLM GPTNeoXForCausalLM GptOssForCausalLM GraniteForCausalLM
    GraniteMoeForCausalLM GraniteMoeHybridForCausalLM GraniteMoeSharedForCausalLM
    GraniteMoeSWAForCausalLM GraniteSWAForCausalLM HunYuanDenseV1ForCausalLM
    HunYuanMoEV1ForCausalLM HyperCLOVAXForCausalLM HYV3ForCausalLM HYV4ForCausalLM
    InklingForCausalLM InternLM2ForCausalLM InternLM3ForCausalLM IQuestCoderForCausalLM
    Jais2ForCausalLM JambaForCausalLM K2HorizonForCausalLM LagunaForCausalLM Lfm2ForCausalLM
    Lfm2MoeForCausalLM Llama4ForCausalLM LlamaForCausalLM LLaMAForCausalLM LongcatFlashForCausalLM
    LongcatFlashNgramForCausalLM MellumForCausalLM MiMoForCausalLM MiniCPM3ForCausalLM
    MiniCPMForCausalLM MiniMaxM2ForCausalLM Ministral3ForCausalLM MistralForCausalLM
    MistralLarge3ForCausalLM MixtralForCausalLM MuseGlimmerForCausalLM NanbeigeForCausalLM
    NemotronForCausalLM NemotronHForCausalLM NemotronHPuzzleForCausalLM Olmo2ForCausalLM
    Olmo3ForCausalLM OlmoeForCausalLM OlmoForCausalLM OlmoHybridForCausalLM OPTForCausalLM
    PanguEmbeddedForCausalLM PanguProMoEV2ForCausalLM PanguUltraMoEForCausalLM
    Param2MoEForCausalLM Phi3ForCausalLM PhiForCausalLM PhiMoEForCausalLM Plamo3ForCausalLM
    Qwen2ForCausalLM Qwen2MoeForCausalLM Qwen3_5ForCausalLM Qwen3_5MoeForCausalLM Qwen3ForCausalLM
    Qwen3MoeForCausalLM Qwen3NextForCausalLM Qwen4ExpForCausalLM Rnj1ForCausalLM
    SarvamMLAForCausalLM SarvamMoEForCausalLM SeedOssForCausalLM SmolLM3ForCausalLM
    SolarForCausalLM Starcoder2ForCausalLM TeleChat2ForCausalLM TeleChat3ForCausalLM
    TeleFLMForCausalLM VaultGemmaForCausalLM
    """.split()  # noqa: SIM905 - one name a line would be pages
)
"""Those that read text."""

DIFFERENT = frozenset({"GPTBigCodeForCausalLM"})
"""Those of them that were seen to answer something else than transformers."""

MORE_THAN_TEXT = frozenset(
    """
    AudioFlamingo3ForConditionalGeneration BagelForConditionalGeneration
    Blip2ForConditionalGeneration ChatGLMForConditionalGeneration ChatGLMModel
    CohereCompassForConditionalGeneration Cosmos3ForConditionalGeneration DeepseekOCR2ForCausalLM
    DeepseekOCRForCausalLM DeepseekV4ForConditionalGeneration DotsOCRForCausalLM
    Eagle2_5_VLForConditionalGeneration Emu3ForConditionalGeneration
    Ernie4_5_VLMoeForConditionalGeneration Exaone4_5_ForConditionalGeneration
    Gemma3ForConditionalGeneration Gemma4ForConditionalGeneration
    Gemma4UnifiedForConditionalGeneration GLM4VForCausalLM Glm4vForConditionalGeneration
    Glm4vMoeForConditionalGeneration Glm5NextForConditionalGeneration
    GlmAsrForConditionalGeneration GlmOcrForConditionalGeneration
    Granite4VisionForConditionalGeneration GraniteSpeechForConditionalGeneration
    GraniteSpeechPlusForConditionalGeneration H2OVLChatModel HunYuanVLForConditionalGeneration
    Idefics3ForConditionalGeneration InklingForConditionalGeneration
    InternS1ForConditionalGeneration InternS1ProForConditionalGeneration
    InternS2MobiusForConditionalGeneration InternS2PreviewForConditionalGeneration
    InternVLChatModel InternVLForConditionalGeneration IsaacForConditionalGeneration
    KeyeForConditionalGeneration KeyeVL1_5ForConditionalGeneration Lfm2VlForConditionalGeneration
    LightOnOCRForConditionalGeneration Llama4ForConditionalGeneration Llama_Nemotron_Nano_VL
    LlavaForConditionalGeneration LlavaNextForConditionalGeneration
    LlavaNextVideoForConditionalGeneration MiniCPMO MiniCPMV MiniCPMV4_6ForConditionalGeneration
    MiniCPMV4_7ForConditionalGeneration Mistral3ForConditionalGeneration
    Molmo2ForConditionalGeneration MolmoForCausalLM MossAudioModel
    MuseGlimmerForConditionalGeneration NemotronH_Nano_Omni_Reasoning_V3 NemotronH_Nano_VL_V2
    NemotronH_Omni_Reasoning_V3 NemotronH_Super_Omni_Reasoning_V3 NVLM_D
    OpenCUAForConditionalGeneration OpenPanguVLForConditionalGeneration
    PaliGemmaForConditionalGeneration Phi4MMForCausalLM PixtralForConditionalGeneration
    QianfanOCRForConditionalGeneration Qwen2_5_VLForConditionalGeneration
    Qwen2_5OmniForConditionalGeneration Qwen2_5OmniModel Qwen2VLForConditionalGeneration
    Qwen3_5ForConditionalGeneration Qwen3_5MoeForConditionalGeneration
    Qwen3ASRForConditionalGeneration Qwen3ASRRealtimeGeneration
    Qwen3OmniMoeForConditionalGeneration Qwen3VLForConditionalGeneration
    Qwen3VLMoeForConditionalGeneration Qwen4ExpForConditionalGeneration
    SmolVLMForConditionalGeneration UltravoxModel UnlimitedOCRForCausalLM
    VibeVoiceAsrForConditionalGeneration VoxtralForConditionalGeneration VoxtralRealtimeGeneration
    WhisperForConditionalGeneration
    """.split()  # noqa: SIM905 - one name a line would be pages
)
"""Those that read images or sounds too."""

"""What vLLM loads from its entry points: exported folders then answer at ``/v1/audio/transcriptions`` of its server.

It runs in vLLM's environment, beside vLLM's own torch and transformers, so it imports nothing but vLLM.
"""


def register() -> None:
    """Tell vLLM which class runs exported folders; it may be called several times, in every process of vLLM."""
    from vllm import ModelRegistry

    kind = "fastslm.serving.vllm_model:TransformersMultiModalForCausalLM"
    ModelRegistry.register_model("FastSLMForConditionalGeneration", kind)

"""An exported folder in vLLM: its Transformers backend, and how a recording is put to it for a transcript."""

from typing import Any, Literal

from transformers.models.whisper.tokenization_whisper import LANGUAGES
from vllm.config import ModelConfig, SpeechToTextConfig
from vllm.config.speech_to_text import SpeechToTextParams
from vllm.inputs import TokensPrompt
from vllm.model_executor.models.interfaces import SupportsTranscription
from vllm.model_executor.models.transformers import (
    MultiModalDummyInputsBuilder,
    MultiModalProcessingInfo,
    MultiModalProcessor,
)
from vllm.model_executor.models.transformers import TransformersMultiModalForCausalLM as Backend
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.transformers_utils.processor import cached_processor_from_config


@MULTIMODAL_REGISTRY.register_processor(
    MultiModalProcessor, info=MultiModalProcessingInfo, dummy_inputs=MultiModalDummyInputsBuilder
)
class TransformersMultiModalForCausalLM(Backend, SupportsTranscription):  # type: ignore[misc]
    """Transcribes and translates whole recordings; the folder's own code cuts them into windows.

    Its name is that by which vLLM knows models of its Transformers backend.
    """

    supported_languages = LANGUAGES  # of the audio it is but a hint, which the model does without

    @classmethod
    def get_speech_to_text_config(
        cls, model_config: ModelConfig, task_type: Literal["transcribe", "translate"]
    ) -> SpeechToTextConfig:
        """Say that recordings are not cut."""
        rate = cached_processor_from_config(model_config).feature_extractor.sampling_rate
        return SpeechToTextConfig(sample_rate=rate, max_audio_clip_s=None)

    @classmethod
    def get_generation_prompt(cls, stt_params: SpeechToTextParams) -> Any:
        """Return a recording with the prompt of training.

        Raises:
            ValueError: what is asked makes no sense; the text is for people.
        """
        if stt_params.hotwords:
            raise ValueError("hotwords: this model knows none; leave them out.")
        target = stt_params.to_language or ("en" if stt_params.task_type == "translate" else None)
        ids = cached_processor_from_config(stt_params.model_config).prompts(
            [stt_params.request_prompt.strip() or None],
            task="ast" if stt_params.task_type == "translate" else "asr",
            language=target and LANGUAGES[target].title(),
        )["input_ids"]
        return TokensPrompt(prompt_token_ids=ids[0].tolist(), multi_modal_data={"audio": stt_params.audio})

    @classmethod
    def post_process_output(cls, text: str) -> str:
        """Return a transcript without space around it."""
        return text.strip()

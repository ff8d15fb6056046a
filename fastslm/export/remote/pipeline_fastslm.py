"""``pipeline("automatic-speech-recognition", ...)`` of an exported model: recordings of any length, each as a whole."""

from collections.abc import Iterator, Mapping
from typing import Any

from transformers import AutomaticSpeechRecognitionPipeline


class FastSLMPipeline(AutomaticSpeechRecognitionPipeline):  # type: ignore[misc]
    """Transcribes whole recordings; ``pipe(audio, task="ast", language="Korean")`` asks for what else it can.

    Further arguments are those of ``generate``. Without ``max_new_tokens`` the limit follows the audio's length.
    """

    _load_processor = True

    def __init__(self, *arguments: Any, **others: Any) -> None:
        super().__init__(*arguments, **others)
        self.type = "seq2seq"  # of the kinds that transformers knows, the one whose output is text tokens
        self._generation_defaults: dict[str, Any] = {}  # those are Whisper's: five beams, 256 tokens
        self.tokenizer.padding_side = "right"  # audio of a batch is padded where the tokenizer pads
        self.tokenizer.pad_token = self.tokenizer.pad_token or self.tokenizer.eos_token

    def _sanitize_parameters(
        self, chunk_length_s: float | None = None, return_timestamps: Any = None, **others: Any
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        if chunk_length_s:
            raise ValueError(
                "chunk_length_s: this model takes recordings of any length as a whole, in windows of its own; leave it"
                " out."
            )
        if return_timestamps:
            raise ValueError("return_timestamps: this model's answers are text without times; leave it out.")
        request = {name: others.pop(name) for name in ("task", "text", "language") if name in others}
        before, forward, after = super()._sanitize_parameters(**others)
        return {**before, **request}, forward, after

    def preprocess(self, inputs: Any, text: str | None = None, **request: Any) -> Iterator[dict[str, Any]]:
        """Yield the one recording with its prompt."""
        for item in super().preprocess(inputs):
            yield {**item, **self.processor.prompts([text], **request)}

    def _forward(self, model_inputs: dict[str, Any], **generate_kwargs: Any) -> Mapping[str, Any]:
        inputs = {name: model_inputs.pop(name) for name in self.processor.model_input_names}
        tokens = self.model.generate(**inputs, **self._prepare_generate_kwargs(generate_kwargs))
        return {"tokens": tokens, **model_inputs}

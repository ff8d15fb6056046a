"""The configuration of an exported model: its parts' configurations, and how they are put together."""

from types import SimpleNamespace
from typing import Any

from transformers import CONFIG_MAPPING, AutoConfig, PretrainedConfig


class FastSLMConfig(PretrainedConfig):  # type: ignore[misc]
    """Configuration of ``FastSLMForConditionalGeneration``.

    Args:
        encoder_config: transformers' configuration of the speech encoder.
        text_config: transformers' configuration of the LLM.
        class_paths: import paths of encoder and abstractor, for processes that have their packages.
        code: digests of the source of those that are of other packages, by import path.
        encoder: arguments of the encoder beyond its configuration.
        abstractor: arguments of the compressor beyond widths and budget.
        budget: arguments of ``TokenBudget``, at the rate that decided the sizes of the weights.
        tokens_per_window: LLM tokens of a full window.
        path: arguments of ``SpeechSettings`` beyond the budget's.
        path_names: those that were written, so that one that got lost does not become a default; folders of before do
            not say.
        lora: rank, alpha and target layers of the LLM's adapters; None when they are merged, or were never there.
        float32_parts: parts kept in float32 when the others are in 16 bit: ``encoder``, ``abstractor``, ``llm``.
        audio_token_id: id that marks a recording in a prompt.
        stop_ids: ids that end an answer.
        new_tokens_per_second: most tokens of an answer for each second of audio, when no limit is given.
        context_length: positions of the LLM; None takes its own.
        trained_on: tasks, lengths and amount of text that it was trained on, as plain values; None is not known.
    """

    model_type = "fastslm_speech"  # the authors' own folders on the hub have "fastslm"
    sub_configs = {"encoder_config": AutoConfig, "text_config": AutoConfig}  # noqa: RUF012
    has_no_defaults_at_init = True

    def __init__(
        self,
        encoder_config: Any = None,
        text_config: Any = None,
        class_paths: dict[str, str] | None = None,
        code: dict[str, str] | None = None,
        encoder: dict[str, Any] | None = None,
        abstractor: dict[str, Any] | None = None,
        budget: dict[str, Any] | None = None,
        tokens_per_window: int | None = None,
        path: dict[str, Any] | None = None,
        path_names: list[str] | None = None,
        lora: dict[str, Any] | None = None,
        float32_parts: list[str] | None = None,
        audio_token_id: int = -1,
        stop_ids: list[int] | None = None,
        new_tokens_per_second: float = 4.0,
        context_length: int | None = None,
        trained_on: dict[str, Any] | None = None,
        **others: Any,
    ) -> None:
        self.encoder_config = _config(encoder_config)
        self.text_config = _config(text_config)
        self.class_paths = class_paths or {}
        self.code = code or {}
        path = dict(path or {})
        first = {"mel_range": path.pop("mel_range")} if "mel_range" in path else {}  # where it stood in version 0.1
        self.encoder = {**first, **(encoder or {})}
        self.abstractor = abstractor or {}
        self.budget = budget or {}
        self.tokens_per_window = tokens_per_window
        self.path = path
        self.path_names = path_names or []
        self.lora = lora
        self.float32_parts = float32_parts or []
        self.audio_token_id = audio_token_id
        self.stop_ids = stop_ids or []
        self.new_tokens_per_second = new_tokens_per_second
        self.context_length = context_length
        self.trained_on = trained_on
        super().__init__(**others)

    @property
    def audio_config(self) -> SimpleNamespace:
        """What engines ask for the most positions of one recording: those of the LLM."""
        positions = self.context_length or getattr(self.text_config, "max_position_embeddings", 4096)
        return SimpleNamespace(max_source_positions=positions)


def _config(given: Any) -> Any:
    if isinstance(given, dict):
        values = dict(given)
        kind = values.pop("model_type", None)  # an encoder of a package of its own may have none
        return AutoConfig.for_model(kind, **values) if kind in CONFIG_MAPPING else PretrainedConfig(**values)
    return given

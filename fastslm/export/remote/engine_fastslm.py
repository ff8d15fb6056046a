"""An exported model as serving engines build it (vLLM, SGLang): they bring head, attention and cache of their own."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from fastslm.export.remote.configuration_fastslm import FastSLMConfig
from fastslm.export.remote.modeling_fastslm import FastSLMForConditionalGeneration, TextModel, computed, flat, path_of
from fastslm.path.listen import Listener


class _Linear(nn.Module):
    """What ``nn.Linear`` is, by another name: engines put layers of their own, all of one dtype, in place of those."""

    weight: Tensor
    bias: Tensor | None

    def forward(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden, self.weight, self.bias)


class FastSLMModel(PreTrainedModel):  # type: ignore[misc]
    """Encoder, compressor and LLM side by side; the LLM has no head.

    ``from_pretrained`` returns ``FastSLMForConditionalGeneration``, the whole model, as AutoModel always has.
    """

    config_class = FastSLMConfig
    input_modalities = ("audio", "text")
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def __init__(self, config: FastSLMConfig) -> None:
        super().__init__(config)
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.float32)  # of tables that are computed
        try:
            path = path_of(config, TextModel(config.text_config, config.lora))
        finally:
            torch.set_default_dtype(before)
        if path.abstractor.lengths_follow_content:
            raise ValueError(
                f"{type(path.abstractor).__name__} gives as many tokens as the audio holds, and an engine must know"
                " their number beforehand. Serve the LLM alone (fastslm export --llm-only) with prompt embeddings."
            )
        causal_lm: Any = path.llm.causal_lm
        self.audio_tower, self.abstractor, self.layer_mix = path.encoder, path.abstractor, path.layer_mix
        self.language_model = causal_lm.base_model
        self._settings = path.listener.settings
        self._has_tables = False
        for module in [*self.audio_tower.modules(), *self.abstractor.modules()]:
            if type(module) is nn.Linear:
                module.__class__ = _Linear  # type: ignore[assignment]
        names = {"encoder": "audio_tower.", "abstractor": "abstractor.", "llm": "language_model."}
        self._keep_in_fp32_modules_strict = {names[part] for part in config.float32_parts}
        for name, parameter in self.named_parameters():  # SGLang takes the dtypes as they are here
            if not name.startswith(tuple(self._keep_in_fp32_modules_strict)):
                parameter.data = parameter.data.to(before)
        self.post_init()

    @classmethod
    def from_pretrained(cls, *arguments: Any, **others: Any) -> Any:
        """Return the whole model, which answers and generates."""
        FastSLMForConditionalGeneration.register_for_auto_class("AutoModelForCausalLM")
        return FastSLMForConditionalGeneration.from_pretrained(*arguments, **others)

    def get_input_embeddings(self) -> nn.Module:
        """Return the LLM's embedding table."""
        return self.language_model.get_input_embeddings()  # type: ignore[no-any-return]

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the LLM's embedding table."""
        self.language_model.set_input_embeddings(value)

    @torch.no_grad()
    def get_audio_features(self, input_features: Tensor, audio_feature_lens: Any = None, **_others: Any) -> Any:
        """Return speech tokens of all recordings, end to end, as ``pooler_output`` ``[n, D_llm]``.

        Args:
            input_features: int16 ``[R, N]``, or all recordings end to end ``[N]``.
            audio_feature_lens: samples of each recording ``[R]``; None where no row is padded.
        """
        device: Any = self.get_input_embeddings().weight.device
        if not self._has_tables:  # engines build parameters without values, and what is computed beside them too
            for name, table in computed(self.abstractor, self.config).items():
                module, _, leaf = name.rpartition(".")
                setattr(self.abstractor.get_submodule(module), leaf, table)
            for part in (self.audio_tower, self.abstractor):
                part.to(device)
            self._has_tables = True
        audio, lengths = flat(input_features, audio_feature_lens)
        llm: Any = SimpleNamespace(embed=self.get_input_embeddings())
        listener = Listener(self.audio_tower, self.abstractor, llm, self._settings, layer_mix=self.layer_mix)
        speech = listener(audio.to(device), listener.cut(lengths))
        rows = torch.from_numpy(np.concatenate(speech.rows)).to(device)
        return BaseModelOutputWithPooling(pooler_output=speech.tokens.flatten(0, 1)[rows])

    def forward(
        self,
        input_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        input_features: Tensor | None = None,
        audio_feature_lens: Any = None,
        **others: Any,
    ) -> Any:
        """Return what the LLM makes of ids, or of embeddings in which speech tokens have their places (vLLM).

        Args:
            input_ids: with one mark for each speech token where there are features (SGLang).
            inputs_embeds: in place of ids.
            input_features: see ``get_audio_features``.
            audio_feature_lens: see ``get_audio_features``.
            others: of the LLM.
        """
        if input_features is not None:
            speech = self.get_audio_features(input_features, audio_feature_lens).pooler_output
            inputs_embeds = self.get_input_embeddings()(input_ids)
            inputs_embeds[input_ids == self.config.audio_token_id] = speech.to(inputs_embeds.dtype)
            input_ids = None
        return self.language_model(input_ids=input_ids, inputs_embeds=inputs_embeds, **others)

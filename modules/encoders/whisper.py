"""Whisper's encoder: samples to frames at 50 per second, of any size and any window up to its positions."""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from fastslm.audio.rate import SAMPLE_RATE_HZ
from fastslm.path.feature_masks import FeatureMasks

from .mel import CONTEXT_SAMPLES, FLOOR_LOG10, HOP_SAMPLES, LogMel, pad_with_context
from .pretrained import PretrainedEncoder, first


class WhisperEncoder(PretrainedEncoder):
    """The encoder of any Whisper-family model, loaded through transformers.

    A window shorter than the model's own (30 s for the published ones) uses the first positions only; the cost of
    attention then falls with the window. Padding is encoded as the silence it is, as in Whisper's own training.

    Source: Radford et al., "Robust Speech Recognition via Large-Scale Weak Supervision" (arXiv 2212.04356).

    Args:
        pretrained: hub name, local folder, or ``fastslm:...`` for a folder inside this package.
        initialize: ``pretrained`` loads weights; ``random`` builds the architecture from the folder's config alone.
        overrides: values that replace those of the folder's config when ``initialize`` is ``random``.
        dtype: dtype of the weights and of the frames; ``auto`` is bfloat16 on a GPU that has it, else float32. The
            front end is always float32.
        layers: give the frames after these layers, counted from 1, or after ``all`` of them; None gives those after
            the last. The final norm is applied to the last layer only.
        mel_range: dynamic range of the spectrogram limited over the ``window``, each a recording of its own, or over
            the ``recording``, windows being cut from one spectrogram of it (the release).

    Raises:
        ConfigError: nothing usable at ``pretrained``, not a Whisper architecture, an unknown override, or no such
            layer.
    """

    family: ClassVar[str] = "a Whisper one"
    inner_name: ClassVar[str] = "whisper"
    _key_mapping: ClassVar[dict[str, str] | None] = {r"^(model\.)?encoder\.": ""}
    _attention: ClassVar[str | None] = "sdpa"

    whisper: Any

    def __init__(
        self,
        pretrained: str,
        *,
        initialize: Literal["pretrained", "random"] = "pretrained",
        overrides: dict[str, Any] | None = None,
        dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
        layers: Sequence[int] | Literal["all"] | None = None,
        mel_range: Literal["window", "recording"] = "window",
    ) -> None:
        super().__init__(pretrained, initialize=initialize, overrides=overrides, dtype=dtype, layers=layers)
        self.mel_range = mel_range
        if mel_range == "recording":
            self.margin_samples = CONTEXT_SAMPLES
            self.min_rest_samples = HOP_SAMPLES  # less has no column of its own in the recording's spectrogram
            self.needs_summary = True

    def export_arguments(self) -> dict[str, Any]:
        """Return what ``of_config`` needs beside the configuration, as JSON values."""
        return super().export_arguments() | ({} if self.mel_range == "window" else {"mel_range": self.mel_range})

    @classmethod
    def _encoder_config(cls, config: Any) -> Any:
        from transformers import WhisperConfig

        return config if isinstance(config, WhisperConfig) else None

    def _architecture(self, config: Any) -> Any:
        from transformers.models.whisper.modeling_whisper import WhisperEncoder as HFWhisperEncoder

        return HFWhisperEncoder

    def _describe(self, config: Any) -> None:
        self.width = config.d_model
        self.samples_per_frame = 2 * HOP_SAMPLES
        self.max_window_seconds = config.max_source_positions * self.samples_per_frame / SAMPLE_RATE_HZ
        self.feature_bins = config.num_mel_bins
        self.samples_per_feature = HOP_SAMPLES
        self.mel = LogMel(config.num_mel_bins)

    def num_frames(self, num_samples: Tensor) -> Tensor:
        """Return the frames of windows that hold so many samples, the last one begun included."""
        return (-(-num_samples // self.samples_per_frame)).clamp_min(1)

    def survey(self, samples: Tensor, num_samples: Tensor) -> Tensor:
        """Return the largest log10 mel power of each window ``[W, 1]``, of silence where a window has no column.

        Args:
            samples: int16 ``[W, N + 2 * margin_samples]``, windows with their neighbourhood.
            num_samples: samples of each window that are audio ``[W]``.
        """
        power = self.mel.log_power(samples)  # [W, M, T]
        inside = first(num_samples // HOP_SAMPLES, power.shape[-1])[:, None]
        return power.masked_fill(~inside, -torch.inf).amax(dim=(1, 2)).clamp_min(FLOOR_LOG10)[:, None]

    def forward(
        self, samples: Tensor, num_samples: Tensor, summary: Tensor | None = None, masks: FeatureMasks | None = None
    ) -> Tensor:
        """Return frames; see ``Encoder.forward``. Without a summary each row is taken for a recording."""
        mel = self._mel(samples, num_samples.to(samples.device), summary)
        mel = mel if masks is None else masks.hide(mel)
        return self._run(self.whisper.layers, lambda: self._encode(mel))

    def _mel(self, samples: Tensor, num_samples: Tensor, summary: Tensor | None) -> Tensor:
        """Return the log-mel ``[W, M, T]``, T two for each frame."""
        length = samples.shape[1] - 2 * self.margin_samples
        whole = max(1, -(-length // self.samples_per_frame)) * self.samples_per_frame
        if self.mel_range == "window":
            mel: Tensor = self.mel(pad_with_context(samples, whole))
            return mel
        samples = F.pad(samples, (0, whole - length))
        loudest = self.survey(samples, num_samples) if summary is None else summary
        mel = self.mel(samples, loudest[:, 0])
        return mel * first(num_samples // HOP_SAMPLES, mel.shape[-1])[:, None]  # the release pads in mel space

    def _encode(self, mel: Tensor) -> Tensor:
        model = self.whisper
        hidden = F.gelu(model.conv1(mel.to(model.conv1.weight.dtype)))
        hidden = F.gelu(model.conv2(hidden)).transpose(1, 2)
        hidden = hidden + model.embed_positions.weight[: hidden.shape[1]]
        for layer in model.layers:
            hidden = layer(hidden, None)
        return model.layer_norm(hidden)  # type: ignore[no-any-return]

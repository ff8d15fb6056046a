"""Encoders that read the waveform itself, at about 50 frames per second: wav2vec 2.0, HuBERT, WavLM and their kin."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastslm.errors import ConfigError
from fastslm.path.feature_masks import FeatureMasks

from .pretrained import KEY, PretrainedEncoder, first

_MODEL_TYPES = (
    "data2vec-audio",
    "hubert",
    "unispeech",
    "unispeech-sat",
    "wav2vec2",
    "wav2vec2-conformer",
    "wavlm",
)
_LEAST_VARIANCE = 1e-7
_Number = TypeVar("_Number", int, Tensor)


class WaveformEncoder(PretrainedEncoder):
    """The encoder of a wav2vec 2.0, HuBERT, WavLM, UniSpeech(-SAT), data2vec-audio or wav2vec 2.0 Conformer model.

    A window has the frames that the model gives it alone, whatever padding follows and whatever the family: attention
    leaves padding out, the convolutions over frames take it as zeros, and the group norm of the ``base`` models takes
    its statistics over audio only. Frames follow from the convolutions of the configuration: a window of n samples has
    about n / 320 - 1 of them, 1499 for 30 s. A window shorter than what one frame sees (400 samples, 25 ms) has one,
    with silence after the audio.

    The model's own masking of time and features, and the skipping of layers, never act, not even when the encoder
    trains: their draws would differ between ranks and resumed runs, and they fail on short windows. Dropout acts
    when the encoder trains, with the rates of the configuration.

    Sources: Baevski et al., "wav2vec 2.0" (arXiv 2006.11477); Hsu et al., "HuBERT" (arXiv 2106.07447); Chen et al.,
    "WavLM" (arXiv 2110.13900); Wang et al., "UniSpeech" (arXiv 2101.07597); Chen et al., "UniSpeech-SAT" (arXiv
    2110.05752); Baevski et al., "data2vec" (arXiv 2202.03555); Wang et al., "fairseq S2T" (arXiv 2010.05171).

    Args:
        pretrained: hub name, local folder, or ``fastslm:...`` for a folder inside this package.
        initialize: ``pretrained`` loads weights; ``random`` builds the architecture from the folder's config alone.
        overrides: values that replace those of the folder's config when ``initialize`` is ``random``.
        dtype: dtype of the weights and of the frames; ``auto`` is bfloat16 on a GPU that has it, else float32. The
            front end is always float32.
        layers: give the frames after these layers, counted from 1, or after ``all`` of them; None gives those after
            the last. Where the architecture has a final norm (``do_stable_layer_norm``, and the Conformer), it is
            applied to the last layer only.
        normalize: scale each window's audio to zero mean and unit variance. None does as the folder's
            ``preprocessor_config.json`` says, and without one as published: for models whose first layers have layer
            norms (``feat_extract_norm: layer``).

    Raises:
        ConfigError: nothing usable at ``pretrained``, another architecture, a model with an adapter that shortens the
            frames, an unknown override, or no such layer.
    """

    family: ClassVar[str] = "a wav2vec 2.0, HuBERT, WavLM, UniSpeech or data2vec-audio one"

    def __init__(
        self,
        pretrained: str,
        *,
        initialize: Literal["pretrained", "random"] = "pretrained",
        overrides: dict[str, Any] | None = None,
        dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
        layers: Sequence[int] | Literal["all"] | None = None,
        normalize: bool | None = None,
    ) -> None:
        super().__init__(pretrained, initialize=initialize, overrides=overrides, dtype=dtype, layers=layers)
        if normalize is None:
            published = getattr(self.config, "feat_extract_norm", "layer") == "layer"
            normalize = bool(self._preprocessor().get("do_normalize", published))
        self.normalize = normalize

    def export_arguments(self) -> dict[str, Any]:
        """Return what ``of_config`` needs beside the configuration, as JSON values."""
        return {**super().export_arguments(), "normalize": self.normalize}

    @classmethod
    def _encoder_config(cls, config: Any) -> Any:
        return config if config.model_type in _MODEL_TYPES else None

    def _describe(self, config: Any) -> None:
        if getattr(config, "add_adapter", False):
            raise ConfigError(
                f"{KEY}: {self.pretrained!r} has an adapter that shortens the frames (add_adapter), which is not"
                " supported. Give the model it was made from; an abstractor shortens frames here."
            )
        config.apply_spec_augment = False
        config.mask_time_prob = config.mask_feature_prob = 0.0
        config.layerdrop = 0.0
        self.width = config.hidden_size
        self._convolutions = list(zip(config.conv_kernel, config.conv_stride, strict=True))
        self.samples_per_frame, self._seen_samples = 1, 1
        for kernel, stride in self._convolutions:
            self._seen_samples += (kernel - 1) * self.samples_per_frame
            self.samples_per_frame *= stride
        self.max_window_seconds = None

    def num_frames(self, num_samples: Tensor) -> Tensor:
        """Return the frames of windows that hold so many samples: those that see audio only, at least 1."""
        return self._count(num_samples.clamp_min(self._seen_samples))

    def _count(self, num_samples: _Number) -> _Number:
        """Return the frames of at least ``_seen_samples`` samples."""
        for kernel, stride in self._convolutions:
            num_samples = (num_samples - kernel) // stride + 1
        return num_samples

    def forward(
        self, samples: Tensor, num_samples: Tensor, summary: Tensor | None = None, masks: FeatureMasks | None = None
    ) -> Tensor:
        """Return frames, those of padding anything; see ``Encoder.forward``. There are no features to hide."""
        num_samples = num_samples.to(samples.device)
        values = self._values(samples, num_samples)
        seen = num_samples.clamp_min(self._seen_samples)
        mask = first(seen, values.shape[1])
        padding = ~first(self._count(seen), self._count(values.shape[1]))  # [W, F]
        with self._audio_only(seen, padding):
            return self._run(
                self.model.encoder.layers, lambda: self.model(values, attention_mask=mask).last_hidden_state
            )

    @torch.no_grad()
    def _values(self, samples: Tensor, num_samples: Tensor) -> Tensor:
        """Return the waveform ``[W, N]`` as the model was trained on it, zeros where padded."""
        values = F.pad(samples.float() / 32768.0, (0, max(0, self._seen_samples - samples.shape[1])))
        if self.normalize:
            real = first(num_samples, values.shape[1])
            count = num_samples.clamp_min(1)[:, None]
            values = (values - (values * real).sum(1, keepdim=True) / count) * real
            variance = values.square().sum(1, keepdim=True) / count
            values = values * (variance + _LEAST_VARIANCE).rsqrt()
        return values.to(next(self.model.parameters()).dtype)

    @contextmanager
    def _audio_only(self, seen: Tensor, padding: Tensor) -> Iterator[None]:
        """Within it, neither the group norm nor a convolution over frames sees padding.

        Args:
            seen: samples of each row that its frames see ``[W]``.
            padding: frames that are not real ``[W, F]`` bool.
        """

        def silence(module: nn.Module, arguments: tuple[Tensor, ...]) -> Tensor:
            return arguments[0].masked_fill(padding[:, None], 0.0)

        norm = self.model.feature_extractor.conv_layers[0]._modules.get("layer_norm")
        convolutions = [m for m in self.model.encoder.modules() if isinstance(m, nn.Conv1d) and m.kernel_size[0] > 1]
        handles = [module.register_forward_pre_hook(silence) for module in convolutions]
        if isinstance(norm, _AudioNorm):
            kernel, stride = self._convolutions[0]
            norm.counts = (seen - kernel) // stride + 1
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            if isinstance(norm, _AudioNorm):
                norm.counts = None

    def _is_unused(self, name: str) -> bool:
        # The vector for masked time; and transformers builds positions for the Conformer that it then does not call.
        conformer = self.config.model_type == "wav2vec2-conformer"
        return name == "masked_spec_embed" or (conformer and name.startswith("encoder.pos_conv_embed."))

    def _fitted(self, model: Any) -> Any:
        # Weights that never get a gradient would stop a training on several GPUs.
        model._parameters.pop("masked_spec_embed", None)
        if self.config.model_type == "wav2vec2-conformer":
            model.encoder._modules.pop("pos_conv_embed", None)
        norm = model.feature_extractor.conv_layers[0]._modules.get("layer_norm")
        if isinstance(norm, nn.GroupNorm):
            norm.__class__ = _AudioNorm  # rather than a new module, whose weights a sharding strategy would notice
        return model


class _AudioNorm(nn.GroupNorm):
    """A group norm with one channel in each group whose statistics are those of the first columns of each row.

    Attributes:
        counts: how many columns ``[W]``, at least 1; None takes all.
    """

    counts: Tensor | None = None

    def forward(self, hidden: Tensor) -> Tensor:
        """Return ``hidden`` ``[W, C, T]`` normalised over time."""
        if self.counts is None:
            return super().forward(hidden)
        real = first(self.counts, hidden.shape[2])[:, None]
        hidden = hidden.masked_fill(~real, 0.0)
        count = self.counts[:, None]
        mean = hidden.sum(2, dtype=torch.float32) / count  # [W, C]
        square = torch.linalg.vector_norm(hidden, dim=2, dtype=torch.float32).square() / count
        scale = self.weight * (square - mean.square()).clamp_min(0.0).add(self.eps).rsqrt()
        shift = self.bias - mean * scale
        return torch.addcmul(shift[:, :, None].to(hidden.dtype), hidden, scale[:, :, None].to(hidden.dtype))

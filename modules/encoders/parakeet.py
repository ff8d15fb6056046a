"""Parakeet's encoder, a FastConformer: samples to frames at 12.5 per second, four times fewer than Whisper's."""

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from fastslm.errors import ConfigError
from fastslm.path.feature_masks import FeatureMasks

from .mel import constants
from .pretrained import KEY, PretrainedEncoder, first

_HOP_SAMPLES = 160  # 10 ms
_WINDOW_SAMPLES = 400  # 25 ms, in the middle of
_FFT_SAMPLES = 512
_PREEMPHASIS = 0.97
_LEAST_POWER = 2.0**-24  # added to the mel power, so that silence has a logarithm
_LEAST_DEVIATION = 1e-5
#: Spectra that are there at once, of all rows together: 70 MB, however long the windows are.
_MAX_SPECTRA = 1 << 15


class ParakeetEncoder(PretrainedEncoder):
    """The encoder of a Parakeet model (CTC, RNN-T or TDT), loaded through transformers.

    A window has the frames that the model gives it alone, whatever padding follows. Each mel bin is scaled to zero mean
    and unit variance over the window's audio, and attention spans the whole window: there is no longest one, but
    memory grows with the square of its frames. Skipping of layers never acts; dropout does when the encoder trains,
    and batch norms keep their statistics.

    Sources: Rekesh et al., "Fast Conformer with Linearly Scalable Attention" (arXiv 2305.05084); Xu et al., "Efficient
    Sequence Transduction by Jointly Predicting Tokens and Durations" (arXiv 2304.06795).

    Args:
        pretrained: hub name, local folder, or ``fastslm:...`` for a folder inside this package.
        initialize: ``pretrained`` loads weights; ``random`` builds the architecture from the folder's config alone.
        overrides: values that replace those of the folder's config of the encoder when ``initialize`` is ``random``.
        dtype: dtype of the weights and of the frames; ``auto`` is bfloat16 on a GPU that has it, else float32. The
            front end is always float32.
        layers: give the frames after these layers, counted from 1, or after ``all`` of them; None gives those after
            the last. Each layer ends in a norm of its own, and no other follows the last.

    Raises:
        ConfigError: nothing usable at ``pretrained``, not a Parakeet architecture, another front end than the
            published models', an unknown override, or no such layer.
    """

    family: ClassVar[str] = "a Parakeet one"

    def _check_front_end(self) -> None:
        known = {
            "sampling_rate": 16_000,
            "hop_length": _HOP_SAMPLES,
            "win_length": _WINDOW_SAMPLES,
            "n_fft": _FFT_SAMPLES,
            "preemphasis": _PREEMPHASIS,
        }
        found = self._preprocessor()
        for name, value in known.items():
            if found.get(name, value) != value:
                raise ConfigError(
                    f"{KEY}: {self.pretrained!r} has {name} {found[name]!r} in its preprocessor_config.json, and this"
                    f" encoder's front end has {value}. Give a model with the published front end."
                )

    @classmethod
    def _encoder_config(cls, config: Any) -> Any:
        encoder = getattr(config, "encoder_config", None)
        if config.model_type in ("parakeet_ctc", "parakeet_rnnt", "parakeet_tdt"):
            return encoder
        return config if config.model_type == "parakeet_encoder" else None

    def _describe(self, config: Any) -> None:
        self._check_front_end()
        config.layerdrop = 0.0
        self.width = config.hidden_size
        kernel, stride = config.subsampling_conv_kernel_size, config.subsampling_conv_stride
        self._convolutions = [(kernel, stride)] * (config.subsampling_factor.bit_length() - 1)
        self.samples_per_frame = _HOP_SAMPLES * stride ** len(self._convolutions)
        self.max_window_seconds = None
        self.feature_bins = config.num_mel_bins
        self.samples_per_feature = _HOP_SAMPLES

    def num_frames(self, num_samples: Tensor) -> Tensor:
        """Return the frames of windows that hold so many samples, at least 1."""
        count = _num_columns(num_samples)
        for kernel, stride in self._convolutions:
            count = (count + (kernel - 1) // 2 * 2 - kernel) // stride + 1
        return count

    def forward(
        self, samples: Tensor, num_samples: Tensor, summary: Tensor | None = None, masks: FeatureMasks | None = None
    ) -> Tensor:
        """Return frames, those of padding anything; see ``Encoder.forward``.

        ``masks`` hide features after each bin was scaled: 0 is its mean.
        """
        num_samples = num_samples.to(samples.device)
        mel = log_mel(samples, num_samples, self.config.num_mel_bins)
        mel = mel if masks is None else masks.hide(mel)
        features = mel.transpose(1, 2).to(next(self.model.parameters()).dtype)  # [W, T, M]
        mask = first(_num_columns(num_samples), features.shape[1])
        return self._run(self.model.layers, lambda: self.model(features, attention_mask=mask).last_hidden_state)


@torch.no_grad()
def log_mel(samples: Tensor, num_samples: Tensor, num_mel_bins: int) -> Tensor:
    """Return the log-mel ``[W, M, T]`` float32, each bin of zero mean and unit variance over the audio, 0 at padding.

    The front end of NVIDIA's NeMo, equal to transformers' ``ParakeetFeatureExtractor`` but for its last column, which
    is padding always. T is one for each 160 samples, at least 1. A bin that never changes, as in silence or in a
    window of one column, is 0.

    Args:
        samples: int16 ``[W, N]``.
        num_samples: samples of each row that are audio ``[W]``.
        num_mel_bins: mel bins M.
    """
    audio = samples.float() / 32768.0
    audio = torch.cat([audio[:, :1], audio[:, 1:] - _PREEMPHASIS * audio[:, :-1]], dim=1)
    audio = audio * first(num_samples, audio.shape[1])
    features = _log_power(audio, num_mel_bins)
    counts = _num_columns(num_samples)
    real = first(counts, features.shape[2])[:, None]
    features = (features - features[:, :, :1]) * real  # sums of small numbers, and of zeros in silence
    features = (features - features.sum(2, keepdim=True) / counts[:, None, None]) * real
    variance = features.square().sum(2, keepdim=True) / (counts - 1).clamp_min(1)[:, None, None]
    return features / (variance.sqrt() + _LEAST_DEVIATION)


def _log_power(audio: Tensor, num_mel_bins: int) -> Tensor:
    """Return the logarithm of the mel power ``[W, M, T]`` of ``audio`` ``[W, N]``, a bounded stretch at a time."""
    num_columns = max(1, audio.shape[1] // _HOP_SAMPLES)
    last = (num_columns - 1) * _HOP_SAMPLES + _FFT_SAMPLES
    audio = F.pad(audio, (_FFT_SAMPLES // 2, max(0, last - audio.shape[1] - _FFT_SAMPLES // 2)))
    window, filters = constants(num_mel_bins, audio.device, _FFT_SAMPLES, _WINDOW_SAMPLES, periodic=False)
    stretch = max(1, _MAX_SPECTRA // len(audio))
    chunks = []
    for begin in range(0, num_columns, stretch):
        end = min(begin + stretch, num_columns)
        part = audio[:, begin * _HOP_SAMPLES : (end - 1) * _HOP_SAMPLES + _FFT_SAMPLES]
        with torch.autocast(audio.device.type, enabled=False):  # float32 whatever the trainer's precision
            spectrum = torch.stft(
                part, _FFT_SAMPLES, _HOP_SAMPLES, _WINDOW_SAMPLES, window, center=False, return_complex=True
            )
            power = filters.T @ (spectrum.real.square() + spectrum.imag.square())
        chunks.append(power.add_(_LEAST_POWER).log_())
    return torch.cat(chunks, dim=2)


def _num_columns(num_samples: Tensor) -> Tensor:
    """Return the columns of the log-mel that so many samples make."""
    return (num_samples // _HOP_SAMPLES).clamp_min(1)

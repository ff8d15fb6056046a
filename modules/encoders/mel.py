"""Whisper's log-mel front end, on the device; every number of it stands here, with its unit.

Source: Radford et al., "Robust Speech Recognition via Large-Scale Weak Supervision" (arXiv 2212.04356), section 2.2.
"""

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from fastslm.audio.rate import SAMPLE_RATE_HZ

HOP_SAMPLES = 160  # 10 ms: 100 mel frames per second
FFT_SAMPLES = 400  # 25 ms
CONTEXT_SAMPLES = FFT_SAMPLES // 2  # what a frame sees beyond the window's edges
FLOOR_LOG10 = -10.0  # log10 of the least power, that of silence
_DYNAMIC_RANGE_LOG10 = 8.0


def slaney_mel_filters(num_mel_bins: int, fft_samples: int = FFT_SAMPLES) -> Tensor:
    """Return the triangular filters ``[1 + fft_samples / 2, M]`` float32, 0 to 8000 Hz, of unit area.

    The mel scale is Slaney's (Auditory Toolbox, 1998): linear below 1 kHz, logarithmic above.

    Args:
        num_mel_bins: mel bins M.
        fft_samples: length of the Fourier transform, even.
    """
    linear_hz, log_start_hz, log_step = 200.0 / 3.0, 1000.0, torch.log(torch.tensor(6.4, dtype=torch.float64)) / 27.0

    def to_hz(mel: Tensor) -> Tensor:
        start = log_start_hz / linear_hz
        return torch.where(mel < start, mel * linear_hz, log_start_hz * torch.exp(log_step * (mel - start)))

    top = log_start_hz / linear_hz + torch.log(torch.tensor(8.0, dtype=torch.float64)) / log_step  # 8000 Hz in mel
    corners = to_hz(torch.linspace(0.0, float(top), num_mel_bins + 2, dtype=torch.float64))
    bins = torch.linspace(0.0, SAMPLE_RATE_HZ / 2, 1 + fft_samples // 2, dtype=torch.float64)
    slopes = corners[None, :] - bins[:, None]
    widths = corners.diff()
    rising, falling = -slopes[:, :-2] / widths[:-1], slopes[:, 2:] / widths[1:]
    triangles = torch.minimum(rising, falling).clamp_min(0.0)
    return (triangles * (2.0 / (corners[2:] - corners[:-2]))).float()


@cache
def constants(
    num_mel_bins: int,
    device: torch.device,
    fft_samples: int = FFT_SAMPLES,
    window_samples: int = FFT_SAMPLES,
    periodic: bool = True,
) -> tuple[Tensor, Tensor]:
    """Return Hann window and filters, float32; no buffers, for ``model.to(torch.bfloat16)`` would round those.

    What is kept for all calls is real, neither fake nor on "meta" nor of inference mode, whichever call was the first.
    """
    with _disable_current_modes(), torch.inference_mode(False), torch.device("cpu"):
        window = torch.hann_window(window_samples, periodic, dtype=torch.float64).float()
        return window.to(device), slaney_mel_filters(num_mel_bins, fft_samples).to(device)


class LogMel(nn.Module):
    """Whisper's log-mel spectrogram of windows.

    Equal to transformers' ``WhisperFeatureExtractor`` when a window is a recording of its own, in float32 whatever the
    model's dtype.

    Args:
        num_mel_bins: mel bins M, 80 or 128 for the published Whisper models.
    """

    def __init__(self, num_mel_bins: int) -> None:
        super().__init__()
        self.num_mel_bins = num_mel_bins

    @torch.no_grad()
    def log_power(self, samples: Tensor) -> Tensor:
        """Return log10 mel power ``[W, M, T]`` of windows that bring their context along.

        Args:
            samples: int16 or float ``[W, N + 2 * CONTEXT_SAMPLES]``: ``CONTEXT_SAMPLES`` on either side belong to
                the neighbours (or to the padding of a recording's end).
        """
        if not samples.is_floating_point():
            samples = samples.float() / 32768.0
        window, filters = constants(self.num_mel_bins, samples.device)
        with torch.autocast(samples.device.type, enabled=False):  # float32 whatever the trainer's precision
            spectrum = torch.stft(
                samples.float(), FFT_SAMPLES, HOP_SAMPLES, window=window, center=False, return_complex=True
            )
            power = spectrum.real.square() + spectrum.imag.square()  # [W, 1 + FFT/2, T + 1]
            mel = filters.T @ power[..., :-1].contiguous()
        return mel.clamp_min_(10.0**FLOOR_LOG10).log10_()

    @torch.no_grad()
    def forward(self, samples: Tensor, loudest: Tensor | None = None) -> Tensor:
        """Return the log-mel windows ``[W, M, T]``, float32.

        Args:
            samples: as in ``log_power``.
            loudest: largest log10 mel power of each window's recording ``[W]``, when the dynamic range is
                limited over the recording; None limits it within each window.
        """
        log_power = self.log_power(samples)
        top = log_power.amax(dim=(1, 2)) if loudest is None else loudest
        floor = (top - _DYNAMIC_RANGE_LOG10)[:, None, None]
        return (torch.maximum(log_power, floor) + 4.0) / 4.0


def pad_with_context(samples: Tensor, num_samples: int) -> Tensor:
    """Return ``[..., num_samples + 2 * CONTEXT_SAMPLES]``: zeros up to ``num_samples``, mirrored at both edges.

    This is how ``WhisperFeatureExtractor`` sees a recording of its own.

    Args:
        samples: ``[..., N]`` with N in ``1..num_samples``.
        num_samples: samples of a full window, above ``CONTEXT_SAMPLES``.
    """
    padded = F.pad(samples, (0, num_samples - samples.shape[-1]))
    left = padded[..., 1 : CONTEXT_SAMPLES + 1].flip(-1)
    right = padded[..., -CONTEXT_SAMPLES - 1 : -1].flip(-1)
    return torch.cat([left, padded, right], dim=-1)

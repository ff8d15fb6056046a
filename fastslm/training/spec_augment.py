"""SpecAugment: bands and stretches of the log-mel hidden from the model, in training only, on the device.

Source: Park et al. (arXiv 1904.08779); lengths of stretches as a share of the audio: Park et al. (arXiv 1912.05533).
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fastslm.errors import ConfigError
from fastslm.mel import HOP_SAMPLES
from fastslm.path.windows import Windows

#: What stands in a hidden place, about the mean of speech in Whisper's scale; transformers' Whisper hides with it too.
HIDDEN = 0.0


@dataclass(frozen=True)
class SpecMasks:
    """What is hidden in some windows, as first and one past the last place.

    Attributes:
        bins: bands of mel bins ``[W, bands, 2]`` int64.
        frames: stretches of mel frames ``[W, stretches, 2]`` int64.
    """

    bins: Tensor
    frames: Tensor

    def __getitem__(self, group: slice) -> "SpecMasks":
        return SpecMasks(self.bins[group], self.frames[group])

    def hide(self, mel: Tensor, begin: int = 0) -> Tensor:
        """Return the windows ``[W, M, T]`` with everything masked set to ``HIDDEN``; they begin at frame ``begin``."""
        bins = _inside(self.bins.to(mel.device, non_blocking=True), mel.shape[1])
        frames = _inside(self.frames.to(mel.device, non_blocking=True) + begin, mel.shape[2])
        return mel.masked_fill(bins[:, :, None] | frames[:, None, :], HIDDEN)


def _inside(spans: Tensor, length: int) -> Tensor:
    """Return ``[W, length]`` bool, True in any of the spans ``[W, n, 2]``."""
    places = torch.arange(length, device=spans.device)
    return ((places >= spans[..., :1]) & (places < spans[..., 1:])).any(dim=1)


@dataclass(frozen=True)
class SpecAugment:
    """How much of each window's log-mel is hidden in training.

    The masks of a window follow from (seed, epoch, sample, recording, place of the window in it) alone: batches, ranks,
    workers and a resumed run change nothing.

    Attributes:
        freq_masks: bands of mel bins hidden in each window.
        freq_width: most mel bins of a band; each width is drawn from 0 to this.
        time_masks: stretches of time hidden in each window.
        time_width: longest stretch as a share of the window's audio, 0..1.

    Raises:
        ConfigError: a number is below 0, or ``time_width`` above 1.
    """

    freq_masks: int = 2
    freq_width: int = 27
    time_masks: int = 10
    time_width: float = 0.05

    def __post_init__(self) -> None:
        for name in ("freq_masks", "freq_width", "time_masks"):
            if getattr(self, name) < 0:
                raise ConfigError(f"model.spec_augment.{name}: {getattr(self, name)} must not be below 0.")
        if not 0.0 <= self.time_width <= 1.0:
            raise ConfigError(f"model.spec_augment.time_width: {self.time_width:g} is outside 0 to 1.")

    def draw(self, names: Sequence[str], windows: Windows, num_mel_bins: int, seed: int, epoch: int) -> SpecMasks:
        """Return the masks of all windows, on the host.

        Args:
            names: of the recordings, R of them.
            windows: of those recordings.
            num_mel_bins: mel bins M.
            seed: of the run.
            epoch: gives each epoch masks of its own.
        """
        bins = np.zeros((len(windows), self.freq_masks, 2), np.int64)
        frames = np.zeros((len(windows), self.time_masks, 2), np.int64)
        identities = [zlib.crc32(name.encode("utf-8", "surrogateescape")) for name in names]
        for window, recording in enumerate(windows.recording):
            place = (windows.start[window] - windows.first[window]) // windows.window_samples
            rng = np.random.default_rng([seed, epoch, identities[recording], place])
            num_frames = -(-windows.num_samples[window] // HOP_SAMPLES)
            bins[window] = _spans(rng, self.freq_masks, min(self.freq_width, num_mel_bins), num_mel_bins)
            frames[window] = _spans(rng, self.time_masks, int(self.time_width * num_frames), num_frames)
        return SpecMasks(torch.from_numpy(bins), torch.from_numpy(frames))


def _spans(rng: np.random.Generator, num: int, widest: int, length: int) -> "np.typing.NDArray[np.int64]":
    """Return spans ``[num, 2]`` within ``0..length``, widths and places drawn evenly."""
    widths = rng.integers(0, widest, num, endpoint=True)
    begins = rng.integers(0, length - widths, num, endpoint=True)
    return np.stack([begins, begins + widths], axis=1)

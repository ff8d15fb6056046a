"""SpecAugment: bands and stretches of an encoder's features hidden from the model, in training only.

Source: Park et al. (arXiv 1904.08779); lengths of stretches as a share of the audio: Park et al. (arXiv 1912.05533).
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from fastslm.contracts import Encoder
from fastslm.errors import ConfigError
from fastslm.path.feature_masks import FeatureMasks
from fastslm.path.windows import Windows


@dataclass(frozen=True)
class SpecAugment:
    """How much of each window's features is hidden in training.

    The masks of a window follow from (seed, epoch, sample, recording, place of the window in it) alone: batches, ranks,
    workers and a resumed run change nothing.

    Attributes:
        freq_masks: bands of feature rows, such as mel bins, hidden in each window.
        freq_width: most rows of a band; each width is drawn from 0 to this.
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

    def draw(
        self, names: Sequence[str], windows: Windows, encoder: Encoder, context_samples: int, seed: int, epoch: int
    ) -> FeatureMasks:
        """Return the masks of all windows, on the host.

        Args:
            names: of the recordings, R of them.
            windows: of those recordings.
            encoder: whose features are hidden; it has ``feature_bins``.
            context_samples: samples of a row before its window; nothing is hidden of them.
            seed: of the run.
            epoch: gives each epoch masks of its own.
        """
        num_bins, step = encoder.feature_bins, encoder.samples_per_feature
        assert num_bins is not None
        bins = np.zeros((len(windows), self.freq_masks, 2), np.int64)
        columns = np.zeros((len(windows), self.time_masks, 2), np.int64)
        identities = [zlib.crc32(name.encode("utf-8", "surrogateescape")) for name in names]
        for window, recording in enumerate(windows.recording):
            place = (windows.start[window] - windows.first[window]) // windows.window_samples
            rng = np.random.default_rng([seed, epoch, identities[recording], place])
            num_columns = -(-windows.num_samples[window] // step)
            bins[window] = _spans(rng, self.freq_masks, min(self.freq_width, num_bins), num_bins)
            columns[window] = _spans(rng, self.time_masks, int(self.time_width * num_columns), num_columns)
        return FeatureMasks(torch.from_numpy(bins), torch.from_numpy(columns + context_samples // step))


def _spans(rng: np.random.Generator, num: int, widest: int, length: int) -> "np.typing.NDArray[np.int64]":
    """Return spans ``[num, 2]`` within ``0..length``, widths and places drawn evenly."""
    widths = rng.integers(0, widest, num, endpoint=True)
    begins = rng.integers(0, length - widths, num, endpoint=True)
    return np.stack([begins, begins + widths], axis=1)

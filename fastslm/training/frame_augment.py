"""Augmentation of the encoder's frames: works where they come from the frame cache, and costs no encoder pass."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fastslm.errors import ConfigError
from fastslm.path.upload import upload

#: Frames that one hidden stretch has at most: half a second of Whisper's.
_LONGEST = 25


@dataclass(frozen=True)
class FrameAugment:
    """Hides, warps and disturbs the frames of each window in training, anew at every step.

    What SpecAugment does to a spectrogram, behind the encoder. Randomness is torch's, which training seeds anew at
    every step. Source: Park et al., "SpecAugment" (Interspeech 2019), section 2; the noise is ours.

    Attributes:
        stretches: most stretches of a window that are hidden (set to zero), each of up to 25 frames.
        warp: how far the middle of a window moves in time, as a share of its length, 0..0.4: one side of it gets
            faster, the other slower.
        noise: size of random gains of each window's features, and of noise on every frame relative to the spread of
            the window's values, 0..1.

    Raises:
        ConfigError: a number is out of its range.
    """

    stretches: int = 6
    warp: float = 0.1
    noise: float = 0.2

    def __post_init__(self) -> None:
        if self.stretches < 0:
            raise ConfigError(f"model.frame_augment.stretches: {self.stretches} must not be below 0.")
        for name, most in (("warp", 0.4), ("noise", 1.0)):
            if not 0.0 <= getattr(self, name) <= most:
                raise ConfigError(f"model.frame_augment.{name}: {getattr(self, name):g} is outside 0 to {most:g}.")

    def __call__(self, frames: Tensor, num_frames: Tensor) -> Tensor:
        """Return the frames ``[W, F, D_enc]`` as training sees them, zero past ``num_frames`` ``[W]``."""
        counts, device = num_frames, frames.device
        places = torch.arange(frames.shape[1], device=device)
        valid = places < counts[:, None]
        sources = _warped(places, counts, self.warp)
        below = sources.floor()
        share = (sources - below)[..., None].to(frames.dtype)
        window = torch.arange(len(frames), device=device)[:, None]  # whole frames are copied, not number by number
        first, second = (
            frames[window, index.long().clamp(max=frames.shape[1] - 1)] for index in (below, sources.ceil())
        )
        result = torch.lerp(first, second, share)
        if self.noise:
            real = valid[..., None]
            count = counts.clamp(min=1)[:, None, None] * frames.shape[2]
            centre = (result.float() * real).sum((1, 2), keepdim=True) / count
            spread = (((result.float() - centre) ** 2 * real).sum((1, 2), keepdim=True) / count).sqrt()
            gain = 1 + self.noise * upload(torch.randn(len(frames), 1, frames.shape[2]), device)
            noise = self.noise * upload(torch.randn(frames.shape), device)
            result = result * gain.to(result) + (noise * spread).to(result)
        shown = valid & ~_hidden(places, counts, self.stretches)
        return result * shown[..., None]


def _warped(places: Tensor, counts: Tensor, most: float) -> Tensor:
    """Return the frame ``[W, F]`` that each frame is taken from: both ends stay, the middle moves."""
    last = (counts - 1).clamp(min=1)[:, None].float()
    moved = 0.5 + most * (2 * upload(torch.rand(len(counts), 1), counts.device) - 1)
    x = (places / last).clamp(max=1.0)
    y = torch.where(x < moved, x * 0.5 / moved, 0.5 + (x - moved) * 0.5 / (1 - moved))
    return (y * last).clamp(max=last)


def _hidden(places: Tensor, counts: Tensor, most: int) -> Tensor:
    """Return ``[W, F]`` bool, True in the stretches that are hidden."""
    number = torch.randint(0, most + 1, (len(counts), 1))
    lengths = torch.randint(1, _LONGEST + 1, (len(counts), most)) * (torch.arange(most) < number)
    lengths = upload(lengths, counts.device)
    starts = upload(torch.rand(len(counts), most), counts.device) * (counts[:, None] - lengths).clamp(min=0)
    after = places[:, None] >= starts[:, None].floor()  # [W, F, most]
    return (after & (places[:, None] < starts[:, None].floor() + lengths[:, None])).any(-1)

"""Sinusoidal positions at any real time, shared by the compressors that place queries on a time axis."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def sinusoids(positions: Tensor, width: int) -> Tensor:
    """Return Whisper's sinusoids ``[n, width]`` float32 at real-valued ``positions`` ``[n]``.

    First half sines, second half cosines, timescales ``10000^(-i / (width/2 - 1))`` for i in ``0..width/2 - 1``.

    Raises:
        ValueError: ``width`` is odd or below 4.
    """
    if width < 4 or width % 2:
        raise ValueError(f"sinusoids: width {width} must be even and at least 4")
    half = width // 2
    rates = torch.exp(-math.log(10_000.0) / (half - 1) * torch.arange(half, dtype=torch.float64))
    angles = positions.to(torch.float64)[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1).float()


def centres(count: int, extent: float) -> Tensor:
    """Return where ``count`` equal parts of an axis of ``extent`` frames have their centres ``[count]``, in frames.

    Part i of n over m frames lies at ``(i + 1/2) m/n - 1/2``, so n = m gives 0, 1, 2, ...
    """
    return (torch.arange(count, dtype=torch.float64) + 0.5) * (extent / count) - 0.5


def resampled(rows: Tensor, count: int) -> Tensor:
    """Return ``rows`` ``[n, d]`` at the ``centres`` of ``count`` equal parts of their axis, linear in between.

    With ``count`` equal to n these are the rows themselves, to the bit.
    """
    if count == len(rows):
        return rows
    return F.interpolate(rows.T[None], size=count, mode="linear", align_corners=False)[0].T

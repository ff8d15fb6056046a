"""Equal shares of a window's frames, one for each token."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Shares(nn.Module):
    """Cuts a window into shares of neighbouring frames; where they do not divide, lengths differ by one.

    A token that the budget grants has at least one valid frame in its share.

    Args:
        num_frames: frames of a full window.
        num_shares: shares of a full window, ``1..num_frames``.
        stride: the cut is made in every ``stride``-th frame only (frame 0, ``stride``, ...), at the same times; at
            most ``num_frames // num_shares``.
    """

    index: Tensor
    inside: Tensor

    def __init__(self, num_frames: int, num_shares: int, stride: int = 1) -> None:
        super().__init__()
        self.num_frames = -(-num_frames // stride)
        edges = [i * num_frames // num_shares // stride for i in range(num_shares)] + [self.num_frames]
        self.longest = max(end - start for start, end in pairwise(edges))
        self.even = self.num_frames == num_shares * self.longest
        index = torch.tensor(edges[:-1])[:, None] + torch.arange(self.longest)  # [n, L]
        self.register_buffer("inside", index < torch.tensor(edges[1:])[:, None], persistent=False)
        self.register_buffer("index", index.clamp(max=self.num_frames - 1), persistent=False)

    def forward(self, frames: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Return the frames of each share ``[W, n, L, D]``, zero where there are none, and where they are valid.

        Args:
            frames: ``[W, F, D]``, F at most that of a full window, zero where they are not valid.
            valid: ``[W, F]`` bool.
        """
        missing = self.num_frames - frames.shape[1]
        if self.even and not missing:  # the shares as they lie, without a copy
            return frames.unflatten(1, (-1, self.longest)), valid.unflatten(1, (-1, self.longest))
        frames, valid = F.pad(frames, (0, 0, 0, missing)), F.pad(valid, (0, missing))
        valid = valid[:, self.index] & self.inside
        shares = frames.index_select(1, self.index.flatten()).reshape(*valid.shape, frames.shape[2])
        return shares.where(valid[..., None], 0), valid

    def mean(self, frames: Tensor, valid: Tensor) -> Tensor:
        """Return the mean of the valid frames of each share ``[W, n, D]``, zero where there are none."""
        shares, valid = self.forward(frames, valid)
        return shares.sum(2) / valid.sum(2)[..., None].clamp_min(1)

    def attend(self, frames: Tensor, scores: Tensor, valid: Tensor) -> Tensor:
        """Return the mean of each share's valid frames weighted by a softmax of their scores ``[W, n, D]``.

        Args:
            frames: ``[W, F, D]``, zero where they are not valid.
            scores: ``[W, F, H]``, of H equal parts of the features; equal scores give the mean.
            valid: ``[W, F]`` bool.
        """
        values, inside = self.forward(frames, valid)
        weights, _ = self.forward(scores, valid)
        weights = weights.masked_fill(~inside[..., None], -torch.inf)
        weights = weights.masked_fill(~inside.any(2)[..., None, None], 0.0)  # shares without frames, whose values are 0
        parts = values.unflatten(-1, (scores.shape[-1], -1))
        # A product and a sum: einsum would copy the frames and keep them for the backward pass.
        return (weights.softmax(2)[..., None] * parts).sum(2).flatten(2)  # type: ignore[no-any-return]

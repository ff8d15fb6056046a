"""What every compressor does about padding, in one place."""

from abc import abstractmethod

import torch
from torch import Tensor, nn

from fastslm.contracts import Abstractor, Tokens

from ._attention import valid_positions


class MaskedAbstractor(Abstractor):
    """Cleans the frames before a compressor reads them, and the tokens after; subclasses write ``compress``."""

    projector: nn.Module

    def forward(self, frames: Tensor, num_frames: Tensor) -> Tokens:
        """Return the tokens of each window; see ``Abstractor.forward``."""
        counts = self.out_lengths(num_frames)
        if self.budget.full_tail:  # as in the release: the padding of the last window is read like audio
            num_frames = torch.full_like(num_frames, frames.shape[1])
        valid = valid_positions(num_frames, frames.shape[1])
        # where, not a product: padding may hold anything, infinities included
        hidden = self.compress(frames.where(valid[..., None], 0), valid)
        kept = valid_positions(counts, self.budget.tokens_per_window)
        return Tokens(self.projector(hidden) * kept[..., None], counts)

    @abstractmethod
    def compress(self, frames: Tensor, valid: Tensor) -> Tensor:
        """Return what the projector maps to tokens, ``[W, K, D_hidden]``, finite everywhere.

        Args:
            frames: encoder output ``[W, F, D_enc]``, zero at padding; F is at most ``budget.frames_per_window``.
            valid: ``[W, F]`` bool, True at frames that hold audio: a first part of each window, never empty.
        """

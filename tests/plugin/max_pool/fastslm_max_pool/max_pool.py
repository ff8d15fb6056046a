"""MaxPool: the maximum of each token's share of the frames, then one matrix."""

import torch
from torch import Tensor, nn

from fastslm.contracts import TokenBudget
from fastslm.modules.abstractors.base import AnyRateAbstractor


class MaxPool(AnyRateAbstractor):
    """Keeps the largest value of each feature.

    Args:
        in_width: features of an encoder frame; the model passes it.
        out_width: features of an LLM embedding; the model passes it.
        budget: frames and tokens of a window; the model passes it.
        gain: what the maxima are multiplied by.
    """

    def __init__(self, in_width: int, out_width: int, budget: TokenBudget, *, gain: float = 1.0) -> None:
        super().__init__(in_width, out_width, budget)
        self.gain = gain
        self.projector = nn.Linear(in_width, out_width)
        self.follow_rate()

    def follow_rate(self) -> None:
        """Do nothing: shares are worked out in every call."""

    def compress(self, frames: Tensor, valid: Tensor) -> Tensor:
        """Return the maxima ``[W, K, D_enc]``, 0 where a token has no frame."""
        num_tokens = self.budget.tokens_per_window
        frame = torch.arange(frames.shape[1], device=frames.device)
        owner = frame * num_tokens // self.budget.frames_per_window
        owner = owner[:, None].expand_as(frames)
        empty = frames.new_full((len(frames), num_tokens, self.in_width), -torch.inf)
        maxima = empty.scatter_reduce(1, owner, frames.masked_fill(~valid[..., None], -torch.inf), "amax")
        return maxima.masked_fill(maxima.isinf(), 0) * self.gain

"""AvgPool: the mean of neighbouring frames and one matrix; the baseline that any compressor has to beat."""

import torch
from torch import Tensor, nn

from fastslm.contracts import Abstractor, TokenBudget, Tokens


class AvgPool(Abstractor):
    """Averages the frames of each token's share of the window and projects the means to the LLM's width.

    With 1500 frames and 50 tokens each token is the mean of 30 frames (0.6 s). Where frames do not divide by tokens,
    neighbouring shares differ by one frame; the last token of a recording averages the frames there are.

    Args:
        in_width: features of an encoder frame; the model passes it.
        out_width: features of an LLM embedding; the model passes it.
        budget: frames and tokens of a window; the model passes it.
    """

    shares: Tensor

    def __init__(self, in_width: int, out_width: int, budget: TokenBudget) -> None:
        super().__init__(in_width, out_width, budget)
        edges = torch.arange(budget.tokens_per_window + 1) * budget.frames_per_window // budget.tokens_per_window
        owner = torch.bucketize(torch.arange(budget.frames_per_window), edges[1:], right=True)
        shares = torch.nn.functional.one_hot(owner, budget.tokens_per_window).T.float()
        self.register_buffer("shares", shares, persistent=False)  # [K, F], 1 where a frame belongs to a token
        self.projector = nn.Linear(in_width, out_width)

    def forward(self, frames: Tensor, num_frames: Tensor) -> Tokens:
        """Return the tokens of each window; see ``Abstractor.forward``."""
        counts = self.out_lengths(num_frames)
        if self.budget.full_tail:
            num_frames = torch.full_like(num_frames, frames.shape[1])
        valid = torch.arange(frames.shape[1], device=frames.device) < num_frames[:, None]
        weights = self.shares.to(frames)[None, :, : frames.shape[1]] * valid[:, None]
        # where, not a product: padding may hold anything, infinities included
        means = weights @ frames.where(valid[..., None], 0) / weights.sum(-1, keepdim=True).clamp_min(1.0)
        kept = torch.arange(means.shape[1], device=frames.device) < counts[:, None]
        return Tokens(self.projector(means) * kept[..., None], counts)

"""AvgPool: the mean of neighbouring frames and one matrix; the baseline that any compressor has to beat."""

from torch import Tensor, nn

from fastslm.contracts import TokenBudget

from ._shares import Shares
from .base import AnyRateAbstractor


class AvgPool(AnyRateAbstractor):
    """Averages the frames of each token's share of the window and projects the means to the LLM's width.

    With 1500 frames and 50 tokens each token is the mean of 30 frames (0.6 s). Where frames do not divide by tokens,
    neighbouring shares differ by one frame; the last token of a recording averages the frames there are.

    Args:
        in_width: features of an encoder frame; the model passes it.
        out_width: features of an LLM embedding; the model passes it.
        budget: frames and tokens of a window; the model passes it.
    """

    def __init__(self, in_width: int, out_width: int, budget: TokenBudget) -> None:
        super().__init__(in_width, out_width, budget)
        self.projector = nn.Linear(in_width, out_width)
        self.follow_rate()

    def follow_rate(self) -> None:
        """Cut the window into one share for each token."""
        self.shares = Shares(self.budget.frames_per_window, self.budget.tokens_per_window)
        self.shares.to(next(self.projector.parameters()).device)

    def compress(self, frames: Tensor, valid: Tensor) -> Tensor:
        """Return the means ``[W, K, D_enc]``."""
        return self.shares.mean(frames, valid)

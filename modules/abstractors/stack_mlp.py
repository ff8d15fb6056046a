"""StackMLP: neighbouring frames side by side and two matrices.

As in SLAM-LLM (Ma et al., arXiv 2402.08846), which stacks 5 frames, and Ultravox, which stacks 8.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from fastslm.contracts import TokenBudget

from ._settings import hidden_width as hidden_width_of
from ._shares import Shares
from .base import MaskedAbstractor


class StackMLP(MaskedAbstractor):
    """Concatenates the frames of each token's share of the window and maps them through a hidden layer with ReLU.

    Nothing is averaged away: with 1500 frames and 50 tokens the first matrix sees 30 frames at once. Where frames do
    not divide by tokens, and where a recording ends, the missing frames are zero.

    Args:
        in_width: features of an encoder frame; the model passes it.
        out_width: features of an LLM embedding; the model passes it.
        budget: frames and tokens of a window; the model passes it.
        hidden_width: features of the hidden layer; null takes the LLM's width.
        match_parameters: choose ``hidden_width`` so that the compressor has about this many parameters.

    Raises:
        ConfigError: the hidden width is below 1, set twice, or cannot meet the number of parameters.
    """

    def __init__(
        self,
        in_width: int,
        out_width: int,
        budget: TokenBudget,
        *,
        hidden_width: int | None = None,
        match_parameters: int | None = None,
    ) -> None:
        super().__init__(in_width, out_width, budget)
        self.shares = Shares(budget.frames_per_window, budget.tokens_per_window)
        stacked_width = in_width * self.shares.longest
        hidden_width = hidden_width_of(
            "hidden_width",
            hidden_width,
            match_parameters,
            default=out_width,
            count=lambda width: (stacked_width + 1) * width + (width + 1) * out_width,
        )
        self.hidden = nn.Linear(stacked_width, hidden_width)
        self.projector = nn.Linear(hidden_width, out_width)

    def compress(self, frames: Tensor, valid: Tensor) -> Tensor:
        """Return the hidden layer ``[W, K, D_hidden]``."""
        shares, _ = self.shares(frames, valid)  # [W, K, L, D_enc]
        return F.relu(self.hidden(shares.flatten(2)))

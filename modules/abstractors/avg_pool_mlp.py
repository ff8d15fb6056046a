"""AvgPoolMLP: the mean of neighbouring frames and two matrices; AvgPool with as many parameters as one likes."""

import torch.nn.functional as F
from torch import Tensor, nn

from fastslm.contracts import TokenBudget

from ._settings import hidden_width as hidden_width_of
from ._shares import Shares
from .base import AnyRateAbstractor


class AvgPoolMLP(AnyRateAbstractor):
    """Averages the frames of each token's share of the window and maps the means through a hidden layer with GELU.

    Tells what a compressor owes to its parameters from what it owes to its way of reading time, when
    ``match_parameters`` gives it the same number.

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
        hidden_width = hidden_width_of(
            "hidden_width",
            hidden_width,
            match_parameters,
            default=out_width,
            count=lambda width: (in_width + 1) * width + (width + 1) * out_width,
        )
        self.hidden = nn.Linear(in_width, hidden_width)
        self.projector = nn.Linear(hidden_width, out_width)
        self.follow_rate()

    def follow_rate(self) -> None:
        """Cut the window into one share for each token."""
        self.shares = Shares(self.budget.frames_per_window, self.budget.tokens_per_window)
        self.shares.to(next(self.projector.parameters()).device)

    def compress(self, frames: Tensor, valid: Tensor) -> Tensor:
        """Return the hidden layer ``[W, K, D_hidden]``."""
        return F.gelu(self.hidden(self.shares.mean(frames, valid)))

"""MaxPool: the maximum of each token's share of the frames, then one matrix."""

import torch
from torch import Tensor, nn

from fastslm.contracts import Abstractor, TokenBudget, Tokens


class MaxPool(Abstractor):
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

    def forward(self, frames: Tensor, num_frames: Tensor) -> Tokens:
        """Return the tokens of each window; see ``Abstractor.forward``."""
        counts = self.out_lengths(num_frames)
        if self.budget.full_tail:
            num_frames = torch.full_like(num_frames, frames.shape[1])
        frame = torch.arange(frames.shape[1], device=frames.device)
        token = torch.arange(self.budget.tokens_per_window, device=frames.device)
        first = token * self.budget.frames_per_window // self.budget.tokens_per_window
        owner = torch.searchsorted(first, frame, right=True) - 1
        heard = frames.masked_fill((frame >= num_frames[:, None])[..., None], -torch.inf)
        empty = heard.new_full((len(frames), len(token), self.in_width), -torch.inf)
        maxima = empty.scatter_reduce(1, owner[:, None].expand_as(heard), heard, "amax")
        kept = (token < counts[:, None])[..., None]
        return Tokens(self.projector(maxima.where(kept, 0) * self.gain) * kept, counts)

"""DropSilence: means of neighbouring frames, and none for those that hold next to nothing."""

import torch
from torch import Tensor, nn

from fastslm.contracts import TokenBudget
from fastslm.modules.abstractors.base import ContentAbstractor


class DropSilence(ContentAbstractor):
    """Leaves out tokens whose frames are weaker than the window's mean.

    Args:
        in_width: features of an encoder frame; the model passes it.
        out_width: features of an LLM embedding; the model passes it.
        budget: frames and tokens of a window; the model passes it.
        least: norm of a token's mean frame below which it is left out, as a share of the window's mean norm, 0..1.
    """

    def __init__(self, in_width: int, out_width: int, budget: TokenBudget, *, least: float = 0.9) -> None:
        super().__init__(in_width, out_width, budget)
        self.least = least
        self.projector = nn.Linear(in_width, out_width)

    def compress(self, frames: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Return the means ``[W, K, D_enc]`` that are kept, in time and first in their window, and how many."""
        num_tokens = self.budget.tokens_per_window
        owner = torch.arange(frames.shape[1], device=frames.device) * num_tokens // self.budget.frames_per_window
        shares = valid[:, None] & (owner == torch.arange(num_tokens, device=frames.device)[:, None])  # [W, K, F]
        counts = shares.sum(-1, keepdim=True)
        means = (shares.to(frames.dtype) @ frames) / counts.clamp_min(1)
        norms = means.float().norm(dim=-1)
        there = counts[..., 0] > 0
        kept = there & (norms >= self.least * (norms.sum(1, keepdim=True) / there.sum(1, keepdim=True)))
        order = (~kept).to(torch.uint8).argsort(dim=1, stable=True)
        return means.gather(1, order[..., None].expand_as(means)), kept.sum(1)

"""Attention between sequences with padding, and the blocks made of it; shared by the compressors that use queries."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ._biased_attention import biased_attention


def valid_positions(num: Tensor, length: int) -> Tensor:
    """Return ``[W, length]`` bool, True at the first ``num`` ``[W]`` positions."""
    return torch.arange(length, device=num.device) < num[:, None]


def attend(
    query: Tensor, key: Tensor, value: Tensor, valid: Tensor | None, num_heads: int, bias: Tensor | None = None
) -> Tensor:
    """Return multi-head attention ``[W, Q, d]``, keys where ``valid`` ``[W, L]`` is False unseen.

    ``bias`` ``[heads, Q, L]`` is added to the scores of every window.
    """
    query, key, value = (x.reshape(*x.shape[:2], num_heads, -1).transpose(1, 2) for x in (query, key, value))
    mask = None if valid is None else valid[:, None, None, :]
    if bias is None:
        attended = F.scaled_dot_product_attention(query, key, value, mask)
    else:
        attended = biased_attention(query, key, value, mask, bias)
    return attended.transpose(1, 2).flatten(2)


class Attention(nn.Module):
    """Multi-head attention with matrices; the key has no bias, as in Whisper (it would cancel in the softmax)."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(self, hidden: Tensor, context: Tensor, valid: Tensor | None, bias: Tensor | None = None) -> Tensor:
        """Return ``[W, Q, d]``: ``hidden`` ``[W, Q, d]`` reads ``context`` ``[W, L, d]``."""
        attended = attend(self.query(hidden), self.key(context), self.value(context), valid, self.num_heads, bias)
        return self.out(attended)  # type: ignore[no-any-return]

    @staticmethod
    def count(width: int) -> int:
        """Return the number of parameters."""
        return 4 * width * width + 3 * width


class FeedForward(nn.Sequential):
    """Two matrices with a GELU between them."""

    def __init__(self, width: int, hidden_width: int) -> None:
        super().__init__(nn.Linear(width, hidden_width), nn.GELU(), nn.Linear(hidden_width, width))

    @staticmethod
    def count(width: int, hidden_width: int) -> int:
        """Return the number of parameters."""
        return 2 * width * hidden_width + hidden_width + width

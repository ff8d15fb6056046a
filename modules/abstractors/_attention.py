"""Attention between sequences with padding, and the blocks made of it; shared by the compressors that use queries."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

#: Scores that attention with a bias has in memory at a time, of as many windows as they make: on a CPU 16 MiB in
#: float32; on a GPU, where each part costs launches of its own, 512 MiB in bfloat16.
_SCORES_HELD = 2**22
_SCORES_HELD_ON_GPU = 2**28


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
        attended = _attend_with_bias(query, key, value, mask, bias.to(query))
    return attended.transpose(1, 2).flatten(2)


def _attend_with_bias(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, bias: Tensor) -> Tensor:
    """Return ``[W, heads, Q, d]``, a few windows at a time, whose scores the backward pass computes once more.

    Torch's fused kernels take no bias that learns, and the plain one keeps the scores of all windows.
    """
    held = _SCORES_HELD if query.device.type == "cpu" else _SCORES_HELD_ON_GPU
    some = max(1, held // bias.numel())
    parts = query.split(some), key.split(some), value.split(some)
    masks = [None] * len(parts[0]) if mask is None else mask.split(some)
    return torch.cat(
        [
            checkpoint(_biased, *part, bias, use_reentrant=False, preserve_rng_state=False)
            for part in zip(*parts, masks, strict=True)
        ]
    )


def _biased(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, bias: Tensor) -> Tensor:
    bias = bias[None] if mask is None else bias.where(mask, -torch.inf)
    return F.scaled_dot_product_attention(query, key, value, bias)


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

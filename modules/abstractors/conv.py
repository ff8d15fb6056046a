"""Conv: strided convolutions down to the token rate, the direct down-sampling baseline."""

import math

import torch.nn.functional as F
from torch import Tensor, nn

from fastslm.contracts import TokenBudget

from ._settings import hidden_width as hidden_width_of
from ._shares import Shares
from .base import MaskedAbstractor


def strides_of(ratio: int) -> list[int]:
    """Return strides of 2, 3 and 5, rising, whose product is the largest such one that is at most ``ratio``."""
    for product in range(ratio, 1, -1):
        strides, rest = [], product
        for stride in (2, 3, 5):
            while rest % stride == 0:
                strides.append(stride)
                rest //= stride
        if rest == 1:
            return strides
    return [1]


class Conv(MaskedAbstractor):
    """Halves, thirds and fifths the frame rate with convolutions and GELU until there is one frame for each token.

    1500 frames to 50 tokens is a factor of 30: strides 2, 3 and 5. A convolution of stride s sees 2 s - 1 positions,
    so that neighbours overlap. Where frames do not divide by tokens into such factors, what is left is averaged.

    Args:
        in_width: features of an encoder frame; the model passes it.
        out_width: features of an LLM embedding; the model passes it.
        budget: frames and tokens of a window; the model passes it.
        hidden_width: channels of the convolutions; null takes the encoder's width.
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
        strides = strides_of(budget.frames_per_window // budget.tokens_per_window)
        kernels = [2 * stride - 1 for stride in strides]

        def count(width: int) -> int:
            convolutions = (in_width * kernels[0] + 1) * width + sum((width * k + 1) * width for k in kernels[1:])
            return convolutions + (width + 1) * out_width

        width = hidden_width_of("hidden_width", hidden_width, match_parameters, default=in_width, count=count)
        self.strides = tuple(strides)
        self.convolutions = nn.ModuleList(
            nn.Conv1d(before, width, kernel, stride, padding=stride - 1)
            for before, kernel, stride in zip([in_width] + [width] * len(kernels), kernels, strides, strict=False)
        )
        self.shares = Shares(budget.frames_per_window, budget.tokens_per_window, stride=math.prod(strides))
        self.projector = nn.Linear(width, out_width)

    def compress(self, frames: Tensor, valid: Tensor) -> Tensor:
        """Return the features at the token rate ``[W, K, D_hidden]``."""
        hidden = frames.transpose(1, 2)
        for convolution, stride in zip(self.convolutions, self.strides, strict=True):
            valid = valid[:, ::stride]  # position i stands for position i * stride before
            hidden = F.gelu(convolution(hidden)) * valid[:, None]
        return self.shares.mean(hidden.transpose(1, 2), valid)

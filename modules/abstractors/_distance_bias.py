"""A bias of attention by distance in time, for compressors whose queries have places on the time axis."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

#: Log slope of heads that have a place of their own: a head weighs a 12th of a share by a third of its middle.
_STEEP = 2.5


class DistanceBias(nn.Module):
    """Lowers the score of a key with its distance from the query, in each head by a slope of its own.

    As ALiBi (Press et al., arXiv 2108.12409), but learned, symmetric, and of distances in time; the unit of distance is
    that between two queries.

    Args:
        num_heads: heads of the attention.
        spread: each head measures distance from a learned place of its own; at first these divide the time between two
            queries evenly, so that the heads of a query tell early frames from late ones before anything is learned.
    """

    distances: Tensor

    def __init__(self, num_heads: int, spread: bool = False) -> None:
        super().__init__()
        slopes = [_STEEP if spread else 1.5 - 3.0 * i / max(1, num_heads - 1) for i in range(num_heads)]
        # Copied in: under the meta device transformers makes torch.linspace give real memory.
        self.log_slope = nn.Parameter(torch.empty(num_heads))
        self.offset = nn.Parameter(torch.empty(num_heads)) if spread else None
        with torch.no_grad():
            self.log_slope.copy_(torch.tensor(slopes))
            if self.offset is not None:
                self.offset.copy_(torch.tensor([(i + 0.5) / num_heads - 0.5 for i in range(num_heads)]))

    def place(self, query_times: Tensor, key_times: Sequence[Tensor], extent: float) -> None:
        """Set where queries, and keys of each scale, lie from now on in a window of ``extent`` frames."""
        self.scale_lengths = [len(times) for times in key_times]
        distances = (torch.cat(list(key_times)) - query_times[:, None]).float() * (len(query_times) / extent)
        self.register_buffer("distances", distances.to(self.log_slope.device), persistent=False)

    def forward(self, num_keys: Sequence[int]) -> Tensor:
        """Return what is added to the scores ``[heads, Q, L]`` of the first ``num_keys`` keys of each scale."""
        scales = self.distances.split(self.scale_lengths, 1)
        distances = torch.cat([scale[:, :n] for scale, n in zip(scales, num_keys, strict=True)], 1)
        if self.offset is not None:
            distances = distances - self.offset[:, None, None]
        return -self.log_slope.exp()[:, None, None] * distances.abs()

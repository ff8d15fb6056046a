"""The Q-Former of BLIP-2 (Li et al., arXiv 2301.12597): learnable queries read a sequence, layer by layer."""

import torch
from torch import Tensor, nn

from ._attention import Attention, FeedForward
from ._positions import resampled


class _Layer(nn.Module):
    """Queries read each other, then the context, then pass a feed-forward part; normed after each, as in BERT."""

    def __init__(self, width: int, num_heads: int, ffn_width: int, lone_query: bool) -> None:
        super().__init__()
        # A lone query has nobody to read: its attention weights could never learn.
        self.self_attention = None if lone_query else Attention(width, num_heads)
        self.self_norm = None if lone_query else nn.LayerNorm(width)
        self.cross_attention = Attention(width, num_heads)
        self.cross_norm = nn.LayerNorm(width)
        self.feed_forward = FeedForward(width, ffn_width)
        self.feed_forward_norm = nn.LayerNorm(width)

    def forward(self, queries: Tensor, context: Tensor, valid: Tensor) -> Tensor:
        """Return ``[N, Q, d]``."""
        if self.self_attention is not None and self.self_norm is not None:
            queries = self.self_norm(queries + self.self_attention(queries, queries, None))
        queries = self.cross_norm(queries + self.cross_attention(queries, context, valid))
        return self.feed_forward_norm(queries + self.feed_forward(queries))  # type: ignore[no-any-return]


class QueryTransformer(nn.Module):
    """Learnable queries that read a sequence.

    Args:
        width: features of the sequence and of the queries.
        num_queries: queries.
        depth: layers.
        num_heads: attention heads.
        ffn_width: hidden features of the feed-forward parts.
    """

    def __init__(self, width: int, num_queries: int, depth: int, num_heads: int, ffn_width: int) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(num_queries, width) * 0.02)
        self.query_norm = nn.LayerNorm(width)
        self.context_norm = nn.LayerNorm(width)
        self.layers = nn.ModuleList(_Layer(width, num_heads, ffn_width, num_queries == 1) for _ in range(depth))

    def forward(self, context: Tensor, valid: Tensor, num_queries: int | None = None) -> Tensor:
        """Return the queries after reading.

        Args:
            context: ``[N, L, d]``, N sequences that do not see each other.
            valid: ``[N, L]`` bool, at least one True in each row.
            num_queries: queries to interpolate the learned ones to; None takes them as they are.

        Returns:
            ``[N, Q, d]``.
        """
        context = self.context_norm(context)
        queries: Tensor = self.query_norm(resampled(self.queries, num_queries or len(self.queries)))
        # Copied, not expanded: of rows that share memory, torch multiplies trained and frozen weights in another order.
        queries = queries.repeat(len(context), 1, 1)
        for layer in self.layers:
            queries = layer(queries, context, valid)
        return queries

    @staticmethod
    def count(width: int, num_queries: int, depth: int, ffn_width: int) -> int:
        """Return the number of parameters."""
        attention, norm = Attention.count(width), 2 * width
        layer = attention + norm + FeedForward.count(width, ffn_width) + norm
        if num_queries > 1:
            layer += attention + norm
        return num_queries * width + 2 * norm + depth * layer

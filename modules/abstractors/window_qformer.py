"""WindowQFormer: a few learnable queries for each fraction of a second.

As in SALMONN (Tang et al., arXiv 2310.13289: one query for 0.33 s) and Granite Speech (Saon et al., arXiv 2505.08699:
three queries for each block of 15 frames).
"""

import torch
from torch import Tensor, nn

from fastslm.contracts import TokenBudget
from fastslm.errors import ConfigError

from ._query_transformer import QueryTransformer
from ._settings import KEY, at_least_one, heads_of, hidden_width
from ._shares import Shares
from .base import AnyRateAbstractor


class WindowQFormer(AnyRateAbstractor):
    """Cuts a window into equal sub-windows and reads each with the same few queries.

    The budget fixes the rest: with 1500 frames (30 s), 50 tokens and one query there are 50 sub-windows of 30 frames
    (0.6 s). Unlike in ``QFormer``, time order is built in. A single query has no self-attention.

    Args:
        in_width: features of an encoder frame; the model passes it.
        out_width: features of an LLM embedding; the model passes it.
        budget: frames and tokens of a window; the model passes it.
        queries_per_subwindow: tokens of a sub-window; divides the tokens of a window.
        depth: layers, at least 1.
        head_width: features of an attention head; null takes 64 (the release), in encoders below 256 a quarter.
        ffn_width: hidden features of the feed-forward parts; null takes four times the encoder's width.
        match_parameters: choose ``ffn_width`` so that the compressor has about this many parameters.

    Raises:
        ConfigError: a number is outside its range, ``queries_per_subwindow`` does not divide the tokens of a window,
            ``head_width`` does not divide the encoder's width, or ``ffn_width`` is set twice or cannot meet the
            number of parameters.
    """

    def __init__(
        self,
        in_width: int,
        out_width: int,
        budget: TokenBudget,
        *,
        queries_per_subwindow: int = 1,
        depth: int = 2,
        head_width: int | None = None,
        ffn_width: int | None = None,
        match_parameters: int | None = None,
    ) -> None:
        super().__init__(in_width, out_width, budget)
        num_heads, num_queries = heads_of(in_width, head_width), queries_per_subwindow
        at_least_one("depth", depth)

        def count(width: int) -> int:
            return QueryTransformer.count(in_width, num_queries, depth, width) + (in_width + 1) * out_width

        ffn_width = hidden_width("ffn_width", ffn_width, match_parameters, default=4 * in_width, count=count)
        self.num_queries = num_queries
        self.reader = QueryTransformer(in_width, num_queries, depth, num_heads, ffn_width)
        self.projector = nn.Linear(in_width, out_width)
        self.follow_rate()

    def follow_rate(self) -> None:
        """Cut the window into one sub-window for each group of queries.

        Raises:
            ConfigError: the queries of a sub-window do not divide the tokens of a window.
        """
        num_tokens, num_queries = self.budget.tokens_per_window, self.num_queries
        if num_queries < 1 or num_tokens % num_queries:
            divisors = ", ".join(str(n) for n in range(1, num_tokens + 1) if num_tokens % n == 0)
            raise ConfigError(
                f"{KEY}.queries_per_subwindow: {num_queries} does not divide model.tokens_per_window: {num_tokens}."
                f" Choose one of {divisors}."
            )
        self.subwindows = Shares(self.budget.frames_per_window, num_tokens // num_queries)
        self.subwindows.to(next(self.projector.parameters()).device)

    def compress(self, frames: Tensor, valid: Tensor) -> Tensor:
        """Return the queries of all sub-windows after reading ``[W, K, D_enc]``."""
        subwindows, valid = self.subwindows(frames, valid)  # [W, n, L, D_enc]
        # A sub-window past the audio reads one zero frame: attention to nothing is undefined.
        seen = valid | (torch.arange(self.subwindows.longest, device=valid.device) == 0)
        queries: Tensor = self.reader(subwindows.flatten(0, 1), seen.flatten(0, 1))
        return queries.reshape(len(frames), self.budget.tokens_per_window, -1)

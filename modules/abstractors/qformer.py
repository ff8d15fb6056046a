"""QFormer: learnable queries over the whole window, as in BLIP-2 (Li et al., arXiv 2301.12597)."""

from typing import ClassVar

from torch import Tensor, nn

from fastslm.contracts import TokenBudget

from ._query_transformer import QueryTransformer
from ._settings import at_least_one, heads_of, hidden_width
from .base import AnyRateAbstractor


class QFormer(AnyRateAbstractor):
    """Reads a window with one learnable query for each token.

    In each layer the queries read each other, then the window's frames, then pass a feed-forward part. Neither
    queries nor frames get positions: what a query knows about time it takes from the encoder's frames. A window with
    less audio keeps the first of the tokens.

    Args:
        in_width: features of an encoder frame; the model passes it.
        out_width: features of an LLM embedding; the model passes it.
        budget: frames and tokens of a window; the model passes it.
        depth: layers, at least 1.
        head_width: features of an attention head; null takes 64 (the release), in encoders below 256 a quarter.
        ffn_width: hidden features of the feed-forward parts; null takes four times the encoder's width.
        match_parameters: choose ``ffn_width`` so that the compressor has about this many parameters.

    Raises:
        ConfigError: a number is outside its range, ``head_width`` does not divide the encoder's width, or
            ``ffn_width`` is set twice or cannot meet the number of parameters.
    """

    query_names: ClassVar[tuple[str, ...]] = ("queries",)

    def __init__(
        self,
        in_width: int,
        out_width: int,
        budget: TokenBudget,
        *,
        depth: int = 2,
        head_width: int | None = None,
        ffn_width: int | None = None,
        match_parameters: int | None = None,
    ) -> None:
        super().__init__(in_width, out_width, budget)
        num_heads, num_queries = heads_of(in_width, head_width), budget.tokens_per_window
        at_least_one("depth", depth)

        def count(width: int) -> int:
            return QueryTransformer.count(in_width, num_queries, depth, width) + (in_width + 1) * out_width

        ffn_width = hidden_width("ffn_width", ffn_width, match_parameters, default=4 * in_width, count=count)
        self.reader = QueryTransformer(in_width, num_queries, depth, num_heads, ffn_width)
        self.projector = nn.Linear(in_width, out_width)

    def follow_rate(self) -> None:
        """Do nothing: the queries are interpolated as they are read."""

    def compress(self, frames: Tensor, valid: Tensor) -> Tensor:
        """Return the queries after reading ``[W, K, D_enc]``."""
        return self.reader(frames, valid, self.budget.tokens_per_window)  # type: ignore[no-any-return]

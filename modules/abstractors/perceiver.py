"""Perceiver: the resampler of Flamingo (Alayrac et al., arXiv 2204.14198)."""

from typing import ClassVar

import torch
from torch import Tensor, nn

from fastslm.contracts import TokenBudget

from ._attention import Attention, FeedForward
from ._positions import resampled
from ._settings import at_least_one, heads_of, hidden_width
from .base import AnyRateAbstractor


class _Layer(nn.Module):
    """The latents read frames and latents in one attention, then pass a feed-forward part; normed before each."""

    def __init__(self, width: int, num_heads: int, ffn_width: int) -> None:
        super().__init__()
        self.frame_norm = nn.LayerNorm(width)
        self.latent_norm = nn.LayerNorm(width)
        self.attention = Attention(width, num_heads)
        self.feed_forward_norm = nn.LayerNorm(width)
        self.feed_forward = FeedForward(width, ffn_width)

    def forward(self, latents: Tensor, frames: Tensor, valid: Tensor) -> Tensor:
        """Return ``[W, K, d]``; ``valid`` ``[W, F + K]`` covers frames and latents."""
        normed = self.latent_norm(latents)
        latents = latents + self.attention(normed, torch.cat([self.frame_norm(frames), normed], 1), valid)
        return latents + self.feed_forward(self.feed_forward_norm(latents))  # type: ignore[no-any-return]


class Perceiver(AnyRateAbstractor):
    """Resamples a window to one latent for each token.

    Frames get learnable time embeddings; in each layer the latents read frames and latents together. A window with
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

    query_names: ClassVar[tuple[str, ...]] = ("latents",)

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
        num_heads = heads_of(in_width, head_width)
        at_least_one("depth", depth)
        num_latents, num_times = budget.tokens_per_window, budget.frames_per_window

        def count(width: int) -> int:
            layer = Attention.count(in_width) + FeedForward.count(in_width, width) + 3 * 2 * in_width
            return (num_latents + num_times + 2) * in_width + depth * layer + (in_width + 1) * out_width

        ffn_width = hidden_width("ffn_width", ffn_width, match_parameters, default=4 * in_width, count=count)
        self.latents = nn.Parameter(torch.randn(num_latents, in_width) * 0.02)
        self.times = nn.Parameter(torch.randn(num_times, in_width) * 0.02)
        self.layers = nn.ModuleList(_Layer(in_width, num_heads, ffn_width) for _ in range(depth))
        self.norm = nn.LayerNorm(in_width)
        self.projector = nn.Linear(in_width, out_width)

    def follow_rate(self) -> None:
        """Do nothing: the latents are interpolated as they are read."""

    def compress(self, frames: Tensor, valid: Tensor) -> Tensor:
        """Return the latents after reading ``[W, K, D_enc]``."""
        frames = frames + self.times[: frames.shape[1]]
        latents = resampled(self.latents, self.budget.tokens_per_window).expand(len(frames), -1, -1)
        valid = torch.cat([valid, valid.new_ones(latents.shape[:2])], 1)
        for layer in self.layers:
            latents = layer(latents, frames, valid)
        return self.norm(latents)  # type: ignore[no-any-return]

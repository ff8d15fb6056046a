"""HTA, the Hierarchical Temporal Abstractor: stage queries read three time scales, final queries read the stages.

Lee, Lee, Chun: "FastSLM: Hierarchical Temporal Abstraction for Efficient Long-Form Speech Adaptation"
(arXiv 2601.06199), section 3. A window of 30 s (1500 frames) becomes 50 tokens, 1.67 tokens per second.
"""

import math
from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastslm.attention.record import AttentionAxes
from fastslm.contracts import TokenBudget
from fastslm.errors import ConfigError

from ._attention import Attention, FeedForward, attend, valid_positions
from ._distance_bias import DistanceBias
from ._positions import centres, resampled, sinusoids
from ._released import from_released, released_name
from ._settings import KEY, heads_of
from ._shares import Shares
from .base import AnyRateAbstractor


class _Downsampler(nn.Module):
    """Halves the frame rate: conv, GELU, strided conv, GELU, LayerNorm."""

    def __init__(self, width: int, factor: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(width, width, 3, padding=1)
        self.conv2 = nn.Conv1d(width, width, 3, stride=factor, padding=1)
        self.norm = nn.LayerNorm(width)

    def forward(self, frames: Tensor, valid: Tensor, valid_after: Tensor) -> Tensor:
        """Return ``[W, ceil(F / factor), d]``, like ``frames`` zero past the audio, as a convolution must see it.

        Zeroed once, here: a product before each use would hold one more copy of a scale for the backward pass.
        """
        hidden = F.gelu(self.conv1(frames.transpose(1, 2)))
        hidden = F.gelu(self.conv2(hidden * valid[:, None]))
        return self.norm(hidden.transpose(1, 2)) * valid_after[..., None]  # type: ignore[no-any-return]


def _bias(num_heads: int, kind: bool | str) -> DistanceBias | None:
    return DistanceBias(num_heads, spread=kind == "spread") if kind else None


class _Compressor(nn.Module):
    """Learnable queries read a sequence once: no q/k/v matrices, no residual, positions on queries and keys only."""

    query_positions: Tensor
    key_positions: Tensor

    def __init__(self, width: int, num_heads: int, num_queries: int, distance_bias: bool | str) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query = nn.Parameter(torch.randn(num_queries, width) * 0.02)
        self.query_norm = nn.LayerNorm(width)
        self.context_norm = nn.LayerNorm(width)
        self.bias = _bias(num_heads, distance_bias)
        self.out = nn.Linear(width, width)

    def place(self, query_times: Tensor, key_times: Tensor, extent: float, by_index: bool) -> None:
        """Set where queries and keys lie from now on in a window of ``extent`` frames.

        Their numbers need not be those of the weights. ``by_index`` numbers them from 0 instead.
        """
        device, width = self.query.device, self.query.shape[1]
        if self.bias is not None:
            self.bias.place(query_times, [key_times], extent)
        if by_index:
            query_times, key_times = torch.arange(len(query_times)), torch.arange(len(key_times))
        self.register_buffer("query_positions", sinusoids(query_times, width).to(device), persistent=False)
        self.register_buffer("key_positions", sinusoids(key_times, width).to(device), persistent=False)

    def forward(self, context: Tensor, valid: Tensor | None) -> Tensor:
        """Return ``[W, num queries, d]`` from ``context`` ``[W, L, d]``."""
        values = self.context_norm(context)
        keys = values + self.key_positions[: context.shape[1]].to(values)
        query = resampled(self.query, len(self.query_positions))
        queries = self.query_norm(query) + self.query_positions.to(values)
        queries = queries.expand(len(context), -1, -1)
        bias = None if self.bias is None else self.bias([context.shape[1]])
        return self.out(attend(queries, keys, values, valid, self.num_heads, bias))  # type: ignore[no-any-return]


class _Refinement(nn.Module):
    """The tokens read each other, then all scales; residual, with a feed-forward part where it has a width."""

    def __init__(self, width: int, num_heads: int, ffn_width: int, distance_bias: bool | str) -> None:
        super().__init__()
        self.bias = _bias(num_heads, distance_bias)
        self.self_norm = nn.LayerNorm(width)
        self.self_attention = Attention(width, num_heads)
        self.cross_norm = nn.LayerNorm(width)
        self.cross_attention = Attention(width, num_heads)
        self.ffn_norm = nn.LayerNorm(width) if ffn_width else None
        self.ffn = FeedForward(width, ffn_width) if ffn_width else None

    def place(self, token_times: Tensor, scale_times: Sequence[Tensor], extent: float) -> None:
        """Set where tokens, and keys of each scale that is read, lie from now on in a window of ``extent`` frames."""
        if self.bias is not None:
            self.bias.place(token_times, scale_times, extent)

    def forward(
        self, tokens: Tensor, scales: Tensor, valid_tokens: Tensor, valid_scales: Tensor, lengths: Sequence[int]
    ) -> Tensor:
        """Return ``[W, K, d]``; ``scales`` ``[W, L, d]`` are all that are read, of ``lengths`` that add up to L."""
        normed = self.self_norm(tokens)
        tokens = tokens + self.self_attention(normed, normed, valid_tokens)
        bias = None if self.bias is None else self.bias(lengths)
        tokens = tokens + self.cross_attention(self.cross_norm(tokens), scales, valid_scales, bias)
        return tokens if self.ffn is None or self.ffn_norm is None else tokens + self.ffn(self.ffn_norm(tokens))


class HTA(AnyRateAbstractor):
    """Compresses a window through a hierarchy of time scales.

    Scale 1 is the encoder's frames, each further scale runs at a lower rate; learnable stage queries read each scale,
    the final queries read all stage tokens, and refinement lets the result read every scale again.

    Args:
        in_width: features of an encoder frame; the model passes it.
        out_width: features of an LLM embedding; the model passes it.
        budget: frames and tokens of a window; the model passes it.
        positions: ``aligned`` puts every query and key at its own time on one axis, so that a query starts out
            looking at the part of the window it stands for; ``index`` numbers queries and keys from 0, as released.
        queries_per_stage: stage tokens of each scale, one number for all scales or one for each; null takes 1.6
            times the tokens of a window (80 for 50, the release).
        downsampling: rate of each scale relative to the one before; its length plus one is the number of scales,
            1 to 4.
        refinement_depth: refinement blocks, 0 to 4.
        refinement_scales: which scales refinement reads, counted from 1; null reads all.
        refinement_ffn_ratio: hidden features of a feed-forward part in each refinement block, in multiples of the
            encoder's width; 0 leaves it out (the release).
        pooled_residual: add to each token, before refinement, the ``mean`` of the frames of its share of the window, so
            that what attention has not learned to find is there from the start; or with ``attention`` a mean whose
            weights within a share are learned, the plain one to begin with. Null is the release.
        distance_bias: every query prefers what is near in time, by a learned amount for each head; with ``spread`` each
            head prefers a place of its own within a token's share of the window, so that the order of what is said is
            there from the start. Off in the release.
        head_width: features of an attention head; null takes 64 (the release), in encoders below 256 a quarter.

    Raises:
        ConfigError: a number is outside its range, or ``head_width`` does not divide the encoder's width.
    """

    query_names: ClassVar[tuple[str, ...]] = ("query",)
    #: The authors' names of these weights, for whoever reads their checkpoint.
    from_released = staticmethod(from_released)
    released_name = staticmethod(released_name)

    def __init__(
        self,
        in_width: int,
        out_width: int,
        budget: TokenBudget,
        *,
        positions: Literal["aligned", "index"] = "aligned",
        queries_per_stage: int | Sequence[int] | None = None,
        downsampling: Sequence[int] = (2, 2),
        refinement_depth: int = 2,
        refinement_scales: Sequence[int] | None = None,
        refinement_ffn_ratio: int = 0,
        pooled_residual: Literal["mean", "attention"] | None = None,
        distance_bias: bool | Literal["spread"] = False,
        head_width: int | None = None,
    ) -> None:
        super().__init__(in_width, out_width, budget)
        num_scales = len(downsampling) + 1
        if num_scales > 4 or any(not 1 <= factor <= 8 for factor in downsampling):
            raise ConfigError(f"{KEY}.downsampling: {list(downsampling)} must hold at most 3 factors, each 1 to 8.")
        if not 0 <= refinement_depth <= 4:
            raise ConfigError(f"{KEY}.refinement_depth: {refinement_depth} is outside 0 to 4.")
        if not 0 <= refinement_ffn_ratio <= 16:
            raise ConfigError(f"{KEY}.refinement_ffn_ratio: {refinement_ffn_ratio} is outside 0 to 16.")
        num_heads = heads_of(in_width, head_width)
        if queries_per_stage is None:
            queries_per_stage = max(1, round(1.6 * budget.tokens_per_window))
        queries = [queries_per_stage] * num_scales if isinstance(queries_per_stage, int) else list(queries_per_stage)
        if len(queries) != num_scales or min(queries) < 1:
            raise ConfigError(
                f"{KEY}.queries_per_stage: {queries} must be one number, or one for each of the {num_scales} scales."
            )
        read = range(1, num_scales + 1) if refinement_scales is None else refinement_scales
        if not set(read) <= set(range(1, num_scales + 1)) or (refinement_depth and not read):
            raise ConfigError(f"{KEY}.refinement_scales: {list(read)} must name scales of 1 to {num_scales}.")
        self.refinement_scales = tuple(sorted(set(read)))

        self.positions = positions
        self.downsampling = tuple(downsampling)
        self.downsamplers = nn.ModuleList(_Downsampler(in_width, factor) for factor in downsampling)
        self.stages = nn.ModuleList(_Compressor(in_width, num_heads, count, distance_bias) for count in queries)
        self.final = _Compressor(in_width, num_heads, budget.tokens_per_window, distance_bias)
        self.pooled_residual = pooled_residual
        if pooled_residual == "attention":
            self.share_scores = nn.Linear(in_width, num_heads, bias=False)  # a bias would cancel in the softmax
            nn.init.zeros_(self.share_scores.weight)
        self.refinement = nn.ModuleList(
            _Refinement(in_width, num_heads, refinement_ffn_ratio * in_width, distance_bias)
            for _ in range(refinement_depth)
        )
        self.projector = nn.Linear(in_width, out_width)
        self.follow_rate()

    def follow_rate(self) -> None:
        """Put queries and keys of all stages in their places on the time axis; stages keep their share of tokens."""
        num_frames, num_tokens = self.budget.frames_per_window, self.budget.tokens_per_window
        trained_tokens = len(self.final.query)
        self.stage_counts = tuple(
            max(1, round(len(stage.query) * num_tokens / trained_tokens))  # type: ignore[arg-type]
            for stage in self.stages
        )
        scale_times, step, length = [torch.arange(num_frames, dtype=torch.float64)], 1, num_frames
        for factor in self.downsampling:
            length, step = -(-length // factor), step * factor
            scale_times.append(torch.arange(length, dtype=torch.float64) * step)
        stage_times = [centres(count, num_frames) for count in self.stage_counts]
        token_times, by_index = centres(num_tokens, num_frames), self.positions == "index"
        for stage, times, keys in zip(self.stages, stage_times, scale_times, strict=True):
            stage.place(times, keys, num_frames, by_index)  # type: ignore[operator]
        self.final.place(token_times, torch.cat(stage_times), num_frames, by_index)
        for block in self.refinement:
            block.place(token_times, [scale_times[i - 1] for i in self.refinement_scales], num_frames)  # type: ignore[operator]
        if self.pooled_residual:
            self.shares = Shares(num_frames, num_tokens).to(self.final.query.device)

    def compress(self, frames: Tensor, valid: Tensor) -> Tensor:
        """Return the final queries' tokens, refined ``[W, K, D_enc]``."""
        num_frames = valid.sum(1)
        scales, valids = [frames], [valid]
        for factor, downsample in zip(self.downsampling, self.downsamplers, strict=True):
            valids.append(valids[-1][:, ::factor])  # position i stands for position i * factor before
            scales.append(downsample(scales[-1], *valids[-2:]))

        stage_tokens = [stage(scale, v) for stage, scale, v in zip(self.stages, scales, valids, strict=True)]
        stage_valid = [valid_positions(self._share(num_frames, count), count) for count in self.stage_counts]
        tokens = self.final(torch.cat(stage_tokens, 1), torch.cat(stage_valid, 1))
        if self.pooled_residual == "mean":
            tokens = tokens + self.shares.mean(frames, valid)
        elif self.pooled_residual == "attention":
            tokens = tokens + self.shares.attend(frames, self.share_scores(frames), valid)
        if self.refinement:
            tokens = self._refine(
                tokens, scales, valids, valid_positions(self.out_lengths(num_frames), tokens.shape[1])
            )
        return tokens  # type: ignore[no-any-return]

    def _refine(
        self, tokens: Tensor, scales: Sequence[Tensor], valids: Sequence[Tensor], valid_tokens: Tensor
    ) -> Tensor:
        """Return the tokens after they have read each other and the scales ``[W, K, D_enc]``."""
        read = [i - 1 for i in self.refinement_scales]
        lengths = [scales[i].shape[1] for i in read]
        context, valid_context = torch.cat([scales[i] for i in read], 1), torch.cat([valids[i] for i in read], 1)
        for block in self.refinement:
            tokens = block(tokens, context, valid_tokens, valid_context, lengths)
        return tokens

    def _share(self, num_frames: Tensor, count: int) -> Tensor:
        """Return how many of ``count`` stage tokens lie in the audio of each window ``[W]``."""
        return -(-num_frames * count // self.budget.frames_per_window)

    def attention_axes(self) -> dict[str, AttentionAxes]:
        """Return what stages, final queries and refinement read, for ``fastslm attention``."""
        num_frames, num_tokens = self.budget.frames_per_window, self.budget.tokens_per_window
        names = [f"scale {i}" for i in range(1, len(self.stages) + 1)]
        steps = [math.prod(self.downsampling[:i]) for i in range(len(self.stages))]
        times = {name: torch.arange(0, num_frames, step) for name, step in zip(names, steps, strict=True)}
        axes = {
            f"stages.{i}": AttentionAxes("stage tokens", self.stage_counts[i], {name: times[name]})
            for i, name in enumerate(names)
        }
        stage_times = {n: centres(count, num_frames) for n, count in zip(names, self.stage_counts, strict=True)}
        makers = {name: f"stages.{i}" for i, name in enumerate(names)}
        axes["final"] = AttentionAxes("final tokens", num_tokens, stage_times, makers)
        read = {names[i - 1]: times[names[i - 1]] for i in self.refinement_scales}
        for i in range(len(self.refinement)):
            axes[f"refinement.{i}.cross_attention"] = AttentionAxes(f"refinement {i + 1}", num_tokens, read)
        return axes

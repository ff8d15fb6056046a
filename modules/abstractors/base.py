"""Base classes for compressors, ours and others': padding, any token rate, and lengths that follow the content."""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from fastslm.contracts import Abstractor, Tokens
from fastslm.path.device_type import device_type

from ._attention import valid_positions

#: Features of frames that are compressed at a time on a CPU, 16 MiB in float32: two windows of Whisper large. There a
#: larger part is no faster, and what it works with lies in blocks so large that the system hands each out anew.
_FEATURES_AT_ONCE = 2**22


class MaskedAbstractor(Abstractor):
    """Cleans the frames before a compressor reads them, and the tokens after; subclasses write ``compress``."""

    projector: nn.Module

    def forward(self, frames: Tensor, num_frames: Tensor) -> Tokens:
        """Return the tokens of each window; see ``Abstractor.forward``."""
        counts = self.out_lengths(num_frames)
        valid = _valid(self, frames, num_frames)
        size = self._windows_at_once(frames)
        parts = zip(frames.split(size), valid.split(size), strict=True)
        # where, not a product: padding may hold anything, infinities included
        hidden = torch.cat([self.compress(part.where(v[..., None], 0), v) for part, v in parts])
        kept = valid_positions(counts, self.budget.tokens_per_window)
        return Tokens(self.projector(hidden) * kept[..., None], counts)

    def _windows_at_once(self, frames: Tensor) -> int:
        """Return how many windows of ``frames`` ``[W, F, D_enc]`` go through ``compress`` together, at least 1."""
        if torch.compiler.is_compiling() or self.in_step or device_type(frames) != "cpu":
            return len(frames)
        return max(1, _FEATURES_AT_ONCE // (frames.shape[1] * frames.shape[2]))

    @abstractmethod
    def compress(self, frames: Tensor, valid: Tensor) -> Tensor:
        """Return what the projector maps to tokens, ``[W, K, D_hidden]``, finite everywhere.

        Args:
            frames: encoder output ``[W, F, D_enc]``, zero at padding; F is at most ``budget.frames_per_window``.
            valid: ``[W, F]`` bool, True at frames that hold audio: a first part of each window, never empty.
        """


class ContentAbstractor(Abstractor):
    """A compressor that gives fewer tokens where the frames hold less; subclasses write ``compress``.

    Batches are planned with ``out_lengths``, the most that a window may cost; the LLM reads as many as there are.
    """

    lengths_follow_content: ClassVar[bool] = True
    projector: nn.Module

    def forward(self, frames: Tensor, num_frames: Tensor) -> Tokens:
        """Return the tokens of each window; see ``Abstractor.forward``."""
        valid = _valid(self, frames, num_frames)
        hidden, counts = self.compress(frames.where(valid[..., None], 0), valid)
        counts = torch.minimum(counts, self.out_lengths(num_frames))
        kept = valid_positions(counts, self.budget.tokens_per_window)
        return Tokens(self.projector(hidden) * kept[..., None], counts)

    @abstractmethod
    def compress(self, frames: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the projector maps to tokens ``[W, K, D_hidden]``, finite everywhere, and how many ``[W]`` count.

        Args:
            frames: encoder output ``[W, F, D_enc]``, zero at padding; F is at most ``budget.frames_per_window``.
            valid: ``[W, F]`` bool, True at frames that hold audio: a first part of each window, never empty.
        """


def _valid(abstractor: Abstractor, frames: Tensor, num_frames: Tensor) -> Tensor:
    """Return ``[W, F]`` bool, True at frames that are read."""
    if abstractor.budget.full_tail:  # as in the release: the padding of the last window is read like audio
        num_frames = torch.full_like(num_frames, frames.shape[1])
    return valid_positions(num_frames, frames.shape[1])


class AnyRateAbstractor(MaskedAbstractor):
    """A compressor whose weights serve any number of tokens per window.

    Subclasses keep what follows the rate (positions, shares) out of their weights and work it out in ``follow_rate``.
    Learned queries are kept at the rate they are trained at and read at another through ``resampled``.

    Attributes:
        query_names: last names of the parameters ``[n, d]`` that hold learned queries in time order.
    """

    query_names: ClassVar[tuple[str, ...]] = ()

    def set_tokens_per_window(self, tokens_per_window: int) -> None:
        """Give ``tokens_per_window`` tokens for a full window from now on, with the same weights."""
        if tokens_per_window != self.budget.tokens_per_window:
            self.budget = replace(self.budget, tokens_per_window=tokens_per_window)
            self.follow_rate()

    @abstractmethod
    def follow_rate(self) -> None:
        """Work out anew what depends on ``budget.tokens_per_window``; a constructor's last call."""

    def adopt_shapes(self, state: Mapping[str, Tensor]) -> None:
        """Take as many queries as the state dict has; how many tokens come out does not change."""
        for name, module in self.named_modules():
            for short in self.query_names:
                given = state.get(f"{name}.{short}" if name else short)
                own = getattr(module, short, None)
                if given is not None and isinstance(own, nn.Parameter) and given.shape[1:] == own.shape[1:]:
                    setattr(module, short, nn.Parameter(own.new_zeros(given.shape), own.requires_grad))
        self.follow_rate()

"""What each plugin promises: Encoder, Abstractor and LanguageModel as thin base classes.

Constructors are cheap and touch no weights: they read a configuration, so that widths, rates and lengths are known
before anything is loaded. ``load`` (encoder, LLM) brings the weights, once, on the rank that needs them.
Dimension letters are those of ``fastslm.batch``.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from fastslm.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass
class Tokens:
    """What an abstractor gives: ``values`` ``[W, K, D_llm]``, zero at padding, and ``counts`` ``[W]`` int64."""

    values: Tensor
    counts: Tensor


@dataclass(frozen=True)
class TokenBudget:
    """How many LLM tokens audio costs; set once, on the model, and the same for every compressor.

    Attributes:
        frames_per_window: encoder frames F of a full window.
        tokens_per_window: LLM tokens K of a full window, ``1..frames_per_window``.
        full_tail: a recording's last window costs all K tokens, as in the release; otherwise its tokens are in
            proportion to its audio, rounded up.

    Raises:
        ConfigError: K is outside ``1..F``.
    """

    frames_per_window: int
    tokens_per_window: int
    full_tail: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.tokens_per_window <= self.frames_per_window:
            raise ConfigError(
                f"model.tokens_per_window: {self.tokens_per_window} tokens cannot be made of the"
                f" {self.frames_per_window} encoder frames of a window. Choose 1 to {self.frames_per_window}."
            )

    def num_tokens(self, num_frames: Tensor) -> Tensor:
        """Return the tokens ``[W]`` of windows with ``num_frames`` ``[W]`` real frames (int64, ``1..F``)."""
        if self.full_tail:
            return torch.full_like(num_frames, self.tokens_per_window)
        return -(-num_frames * self.tokens_per_window // self.frames_per_window)


class Encoder(nn.Module, ABC):
    """Turns log-mel windows into frames.

    Attributes:
        width: features of a frame, D_enc.
        num_mel_bins: mel bins M it reads.
        samples_per_frame: audio samples at 16 kHz behind one frame (320 for Whisper, 50 frames/s).
        max_window_seconds: longest window it has positions for.
    """

    width: int
    num_mel_bins: int
    samples_per_frame: int
    max_window_seconds: float

    @abstractmethod
    def load(self) -> None:
        """Bring the weights; a second call does nothing.

        Raises:
            ConfigError: the weights are missing, or do not fit the architecture.
        """

    @abstractmethod
    def forward(self, mel: Tensor) -> Tensor:
        """Return frames ``[W, F, D_enc]`` of ``mel`` ``[W, M, T]``; windows do not see each other."""


class Abstractor(nn.Module, ABC):
    """Turns the frames of a window into fewer LLM tokens.

    Subclasses take ``(in_width, out_width, budget)`` from the model, then keyword arguments of their own with
    defaults. What they make is the same whatever the padding holds, and whatever other windows are in the call.
    The submodule named by ``projector_name`` maps to the LLM's width; ``train_parts`` can train it apart.

    Args:
        in_width: features of an encoder frame, D_enc; the model passes it.
        out_width: features of an LLM embedding, D_llm; the model passes it.
        budget: frames and tokens of a window; the model passes it.
    """

    projector_name: ClassVar[str] = "projector"

    def __init__(self, in_width: int, out_width: int, budget: TokenBudget) -> None:
        super().__init__()
        self.in_width = in_width
        self.out_width = out_width
        self.budget = budget

    def out_lengths(self, num_frames: Tensor) -> Tensor:
        """Return the tokens ``[W]`` int64 of windows with ``num_frames`` ``[W]`` real frames; needs no weights."""
        return self.budget.num_tokens(num_frames)

    @abstractmethod
    def forward(self, frames: Tensor, num_frames: Tensor) -> Tokens:
        """Return the tokens of each window.

        Args:
            frames: encoder output ``[W, F, D_enc]``; positions from ``num_frames`` on are padding and are ignored.
            num_frames: real frames of each window ``[W]``, int64, each in ``1..F``.

        Returns:
            ``values`` ``[W, K, D_llm]``, zero at padding, with K the budget's tokens per window, and ``counts``
            ``[W]``, equal to ``out_lengths(num_frames)``.
        """


class LanguageModel(nn.Module, ABC):
    """Reads embeddings and writes text.

    Attributes:
        width: features of an embedding, D_llm.
        context_length: positions it was made for.
        tokenizer: its tokenizer, with a chat template.
    """

    width: int
    context_length: int
    tokenizer: "PreTrainedTokenizerBase"

    @abstractmethod
    def load(self) -> None:
        """Bring the weights; a second call does nothing.

        Raises:
            ConfigError: the weights are missing, or do not fit the architecture.
        """

    @abstractmethod
    def embed(self, input_ids: Tensor) -> Tensor:
        """Return the embeddings ``[..., D_llm]`` of token ids ``[...]`` int64."""

    @abstractmethod
    def forward(self, embeddings: Tensor, attention_mask: Tensor | None, positions: Tensor) -> Tensor:
        """Return logits ``[N, V]`` at chosen positions only.

        Args:
            embeddings: ``[B, S, D_llm]``, right-padded.
            attention_mask: ``[B, S]`` int64, 1 where there is a token; None when nothing is padded.
            positions: flat indices into ``B * S`` of the N positions whose next token is wanted, N at least 1.
        """

    @abstractmethod
    def generate(
        self, embeddings: Tensor, attention_mask: Tensor, max_new_tokens: int, stop_ids: Sequence[int]
    ) -> Tensor:
        """Return greedy continuations ``[B, L]`` int64, padded at the right with the first of ``stop_ids``.

        Args:
            embeddings: ``[B, S, D_llm]``, left-padded.
            attention_mask: ``[B, S]`` int64, 1 where there is a token.
            max_new_tokens: most tokens of a continuation.
            stop_ids: ids that end an answer.
        """

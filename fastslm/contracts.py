"""What each plugin promises: Encoder, Abstractor and LanguageModel as thin base classes.

Constructors are cheap and touch no weights: they read a configuration, so that widths, rates and lengths are known
before anything is loaded. ``settle`` (encoder, LLM) tells them which device they will run on; ``load`` then brings the
weights, once, on the rank that needs them.
Dimension letters are those of ``fastslm.path.batch``.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from fastslm.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Tokens(NamedTuple):
    """What an abstractor gives: ``values`` ``[W, K, D_llm]``, zero at padding, and ``counts`` ``[W]`` int64.

    A tuple, since strategies that shard parameters look for tensors in tuples, lists and dictionaries only.
    """

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

    def settle(self, device: torch.device) -> None:
        """Decide what depends on the device, such as a dtype of ``auto``; called before ``load``. Does nothing here.

        Args:
            device: where the encoder will run, which may not be present on this machine (``fastslm plan``).
        """

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

    Attributes:
        in_step: ranks share its parameters, so that a call must run its submodules equally often, however many windows
            it gets; set by the training.
    """

    projector_name: ClassVar[str] = "projector"
    in_step: bool = False

    def __init__(self, in_width: int, out_width: int, budget: TokenBudget) -> None:
        super().__init__()
        self.in_width = in_width
        self.out_width = out_width
        self.budget = budget

    def out_lengths(self, num_frames: Tensor) -> Tensor:
        """Return the tokens ``[W]`` int64 of windows with ``num_frames`` ``[W]`` real frames; needs no weights."""
        return self.budget.num_tokens(num_frames)

    def set_tokens_per_window(self, tokens_per_window: int) -> None:
        """Give ``tokens_per_window`` tokens for a full window from now on, with the same weights.

        Raises:
            ConfigError: the weights are for one rate only (what this does unless a subclass knows better), or the
                rate is outside the budget's range.
        """
        if tokens_per_window != self.budget.tokens_per_window:
            raise ConfigError(
                f"model.tokens_per_window: {type(self).__name__} has weights for {self.budget.tokens_per_window} tokens"
                f" only, and cannot give {tokens_per_window} with them. Train one model for each rate, or choose a"
                " compressor that takes many, such as HTA."
            )

    def adopt_shapes(self, state: Mapping[str, Tensor]) -> None:
        """Take over the sizes of a state dict of this compressor that was trained at another rate, before it is loaded.

        Does nothing unless a subclass has weights whose size follows the rate it is trained at.
        """

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


class KVCache(ABC):
    """What an LLM has read so far: B rows of positions, which ``LanguageModel.extend`` adds to."""

    @property
    @abstractmethod
    def num_positions(self) -> int:
        """Positions read so far, padding included."""

    @property
    @abstractmethod
    def can_cut(self) -> bool:
        """Whether ``cut`` works; a sliding window may have let go of what it would need again."""

    @abstractmethod
    def cut(self, num_positions: int) -> None:
        """Forget everything from ``num_positions`` on."""

    @abstractmethod
    def select(self, rows: Tensor) -> None:
        """Keep ``rows`` (int64), in that order; a row may come more than once."""

    @abstractmethod
    def copy(self) -> "KVCache":
        """Return a cache of its own that holds the same."""


class LanguageModel(nn.Module, ABC):
    """Reads embeddings and writes text.

    Attributes:
        width: features of an embedding, D_llm.
        context_length: positions it was made for.
        tokenizer: its tokenizer, with a chat template.
        in_step: ranks share its parameters, so while one of them still generates the others run along; set by the
            training.
    """

    width: int
    context_length: int
    tokenizer: "PreTrainedTokenizerBase"
    in_step: bool = False

    def settle(self, device: torch.device) -> None:
        """Decide what depends on the device, such as a dtype of ``auto``; called before ``load``. Does nothing here.

        Args:
            device: where the LLM will run, which may not be present on this machine (``fastslm plan``).
        """

    def leave_out_adapters(self) -> None:
        """Make no adapters in ``load``: none train, and no checkpoint has any. Does nothing here."""

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

    def new_cache(self) -> KVCache:
        """Return an empty cache for ``extend``; an LLM without it trains, and cannot be used by ``fastslm.load``.

        Raises:
            ConfigError: this LLM has no cache.
        """
        raise ConfigError(f"model.llm: {type(self).__name__} cannot read step by step: it has no new_cache and extend.")

    def extend(self, embeddings: Tensor, attention_mask: Tensor | None, cache: KVCache) -> Tensor:
        """Read on from what ``cache`` holds and return the logits ``[B, V]`` of the last position only.

        Args:
            embeddings: ``[B, S, D_llm]``, S at least 1.
            attention_mask: ``[B, cache.num_positions + S]`` int64, 0 at padding, which stands at the left; None when
                nothing is padded.
            cache: what was read before; S positions are added to it.
        """
        raise NotImplementedError

"""What each plugin promises: Encoder, Abstractor, LanguageModel, Task and its Metric.

Constructors are cheap and touch no weights: they read a configuration, so that widths, rates and lengths are known
before anything is loaded. ``settle`` (encoder, LLM) tells them which device they will run on; ``load`` then brings the
weights, once, on the rank that needs them.
Dimension letters are those of ``fastslm.path.batch``.
"""

import inspect
import math
import string
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self, final

import torch
from torch import Tensor, nn

from fastslm.audio.rate import SAMPLE_RATE_HZ
from fastslm.errors import ConfigError
from fastslm.path.feature_masks import FeatureMasks
from fastslm.settings import Change

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
    """Turns the samples of windows into frames; its front end, such as a spectrogram, is part of it.

    A window is a row of int16 samples at 16 kHz. All that the package asks about lengths is ``num_frames``, before any
    weight exists; frames may be at any rate, and a window may have one more or one less than its length suggests.

    Attributes:
        width: features of a frame, D_enc.
        samples_per_frame: samples from the beginning of one frame to the next: 320 for 50 frames per second.
        max_window_seconds: longest row it has positions for; None for any.
        margin_samples: samples that a row brings along on either side beyond its window and context, of the same
            recording; beyond the recording's ends they mirror it.
        min_rest_samples: the rest of a recording behind its last full window has a window of its own when it is at
            least so long.
        needs_summary: ``survey`` must have seen all windows of a recording before ``forward`` sees the first.
        feature_bins: rows M of the features ``[W, M, T]`` that ``forward`` can hide parts of; None where there is
            nothing to hide.
        samples_per_feature: samples from one column of those features to the next.
        layers: the layers whose frames are given, first to last, for a learned weighted sum; empty for the frames of
            the last layer alone.
    """

    width: int
    samples_per_frame: int
    max_window_seconds: float | None = None
    margin_samples: int = 0
    min_rest_samples: int = 1
    needs_summary: bool = False
    feature_bins: int | None = None
    samples_per_feature: int = 160
    layers: tuple[int, ...] = ()
    #: What another value of a constructor argument changes, where it is not ``run``; see ``fastslm.settings``.
    changes: ClassVar[Mapping[str, Change]] = {}
    _given: tuple[tuple[Any, ...], dict[str, Any]]

    def __new__(cls, *arguments: Any, **named: Any) -> Self:
        """Note what the constructor is given."""
        made = super().__new__(cls)
        made._given = arguments, named
        return made

    @property
    def frames_per_second(self) -> float:
        """Frames of a second of audio."""
        return SAMPLE_RATE_HZ / self.samples_per_frame

    @abstractmethod
    def num_frames(self, num_samples: Tensor) -> Tensor:
        """Return the frames of windows with so many samples, int64 to int64 of any shape; needs no weights.

        Args:
            num_samples: samples of each window, at least 1.

        Returns:
            At least 1 each, and never fewer for more samples.
        """

    def settle(self, device: torch.device) -> None:
        """Decide what depends on the device, such as a dtype of ``auto``; called before ``load``. Does nothing here.

        Args:
            device: where the encoder will run, which may not be present on this machine (``fastslm plan``).
        """

    @abstractmethod
    def load(self) -> None:
        """Bring the weights; a second call does nothing.

        They are the same in every process, since no checkpoint holds those of a frozen encoder: torch's generator of
        the CPU is seeded alike around this call, and what is drawn from another one must be so too.

        Raises:
            ConfigError: the weights are missing, or do not fit the architecture.
        """

    def survey(self, samples: Tensor, num_samples: Tensor) -> Tensor:
        """Return what must be known of windows before any of their recording is encoded ``[W, n]``, float32.

        Args:
            samples: see ``forward``.
            num_samples: see ``forward``.
        """
        raise NotImplementedError(f"{type(self).__name__} needs a summary of each recording and has no survey")

    def combine(self, surveys: Tensor) -> Tensor:
        """Return the summary ``[n]`` of a recording from the surveys ``[W, n]`` of its windows, in any order."""
        return surveys.amax(0)

    @abstractmethod
    def forward(
        self,
        samples: Tensor,
        num_samples: Tensor,
        summary: Tensor | None = None,
        masks: FeatureMasks | None = None,
    ) -> Tensor:
        """Return the frames of windows ``[W, F, D_enc]``, or ``[W, L, F, D_enc]`` of the L ``layers``.

        Frames of a window are the same whatever other windows are in the call.

        Args:
            samples: int16 ``[W, margin + N + margin]``, N a multiple of ``samples_per_frame``; zeros behind a
                recording's end.
            num_samples: samples of each row that are audio ``[W]``, int64, ``1..N``, counted behind the margin.
            summary: what ``combine`` made of each window's recording ``[W, n]``; None unless ``needs_summary``.
            masks: what to hide of the features; None hides nothing.

        Returns:
            F is ``num_frames(N)``.
        """

    @classmethod
    def of_config(cls, config: Any, **arguments: Any) -> Self:
        """Return the architecture without its weights, for a model that brings them along (an exported folder).

        Args:
            config: what ``export_config`` gave.
            arguments: what ``export_arguments`` gave.
        """
        raise ConfigError(f"model.encoder: {cls.__name__} cannot be exported: it has no of_config.")

    def export_config(self) -> Any:
        """Return the configuration of transformers' kind that ``of_config`` builds it from.

        Raises:
            ConfigError: it has none.
        """
        raise ConfigError(f"model.encoder: {type(self).__name__} cannot be exported: it has no export_config.")

    def export_arguments(self) -> dict[str, Any]:
        """Return the other arguments of ``of_config``, plain values."""
        return {}

    def identity(self) -> tuple[object, ...]:
        """Return all that decides frames beside weights and samples, as an exported model knows it.

        Cached frames are told apart by it, and by ``given_arguments``.
        """
        return (type(self).__qualname__, self.layers, *sorted(self.export_arguments().items()))

    @final
    def given_arguments(self) -> dict[str, Any]:
        """Return the constructor's arguments by name, defaults too, but for those that change ``nothing``."""
        arguments, named = self._given
        bound = inspect.signature(type(self)).bind(*arguments, **named)
        bound.apply_defaults()
        return {name: value for name, value in bound.arguments.items() if self.changes.get(name) != "nothing"}


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
        lengths_follow_content: ``forward`` may give fewer tokens than ``out_lengths`` says, by what the frames hold.
    """

    projector_name: ClassVar[str] = "projector"
    lengths_follow_content: ClassVar[bool] = False
    #: What another value of a constructor argument changes, where it is not ``weights``; see ``fastslm.settings``.
    changes: ClassVar[Mapping[str, Change]] = {}
    in_step: bool = False

    def __init__(self, in_width: int, out_width: int, budget: TokenBudget) -> None:
        super().__init__()
        self.in_width = in_width
        self.out_width = out_width
        self.budget = budget

    def out_lengths(self, num_frames: Tensor) -> Tensor:
        """Return the tokens ``[W]`` int64 of windows with ``num_frames`` ``[W]`` real frames; needs no weights.

        The most that they may have, where ``lengths_follow_content``: batches are planned with it.
        """
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
            ``[W]``, equal to ``out_lengths(num_frames)``, or ``0..out_lengths(num_frames)`` where
            ``lengths_follow_content``.
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
        can_batch: rows of a batch, with padding at the left, are written as each alone.
        can_pack: ``forward`` takes ``lengths``, and it is wanted there.
        packs: training gives it dialogues end to end; set where ``fastslm.path.packing`` found them to be kept apart.
        takes_labels: ``forward`` takes ``labels``.
    """

    width: int
    context_length: int
    tokenizer: "PreTrainedTokenizerBase"
    #: What another value of a constructor argument changes, where it is not ``run``; see ``fastslm.settings``.
    changes: ClassVar[Mapping[str, Change]] = {}
    in_step: bool = False
    can_batch: bool = True
    can_pack: bool = False
    packs: bool = False
    takes_labels: bool = False

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
    def forward(
        self,
        embeddings: Tensor,
        attention_mask: Tensor | None,
        positions: Tensor,
        lengths: Sequence[int] | None = None,
        labels: Tensor | None = None,
    ) -> Tensor:
        """Return logits ``[N, V]`` at chosen positions only, or the summed cross-entropy of labels there, a scalar.

        Args:
            embeddings: ``[B, S, D_llm]``, right-padded.
            attention_mask: ``[B, S]`` int64, 1 where there is a token; None when nothing is padded.
            positions: flat indices into ``B * S`` of the N positions whose next token is wanted, N at least 1.
            lengths: of dialogues that stand end to end in one row, B is 1; given where ``packs`` is set, so that an LLM
                that never sets ``can_pack`` may leave this argument out.
            labels: ids ``[N]`` at those positions, -100 counting nothing; given where ``takes_labels`` is set, so that
                the LLM need not have all logits at once. An LLM that never sets it may leave this argument out.
        """

    @abstractmethod
    def generate(
        self, embeddings: Tensor, attention_mask: Tensor, max_new_tokens: int, stop_ids: Sequence[int]
    ) -> Tensor:
        """Return greedy continuations ``[B, L]`` int64, padded at the right with the first of ``stop_ids``.

        Args:
            embeddings: ``[B, S, D_llm]``, left-padded.
            attention_mask: ``[B, S]`` int64, 1 where there is a token.
            max_new_tokens: most tokens of a continuation. Rows whose prompts leave less room in ``context_length`` may
                write anything beyond it, and must not fail.
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

        A row that is done stays beside others for a while: single positions beyond ``context_length`` may have any
        logits, and must not fail.

        Args:
            embeddings: ``[B, S, D_llm]``, S at least 1.
            attention_mask: ``[B, cache.num_positions + S]`` int64, 0 at padding, which stands at the left; None when
                nothing is padded.
            cache: what was read before; S positions are added to it.
        """
        raise NotImplementedError

    def branch(self, embeddings: Tensor, parents: Sequence[int], wanted: Sequence[int], cache: KVCache) -> Tensor:
        """Return the logits ``[N, V]`` behind some of the tokens that branch off what was read, which stays as it is.

        Here each of the N ways from what was read is a row of its own, those of a length in a pass together, since not
        every LLM can have padding behind what it has read. An LLM may read the tree in one pass instead.

        Args:
            embeddings: of the tokens of a tree ``[S, D_llm]``, S at least 1.
            parents: for each token the index of the one before it, which is a smaller one; -1 where that is the last
                position in the cache.
            wanted: indices of the N tokens whose next token is wanted.
            cache: what was read before, one row.
        """
        ways = [way_to(token, parents) for token in wanted]
        logits: dict[int, Tensor] = {}
        for size in sorted({len(way) for way in ways}):
            rows = [row for row, way in enumerate(ways) if len(way) == size]
            of_rows = cache.copy()
            of_rows.select(torch.zeros(len(rows), dtype=torch.int64, device=embeddings.device))
            read = self.extend(embeddings[torch.tensor([ways[row] for row in rows])], None, of_rows)
            logits |= dict(zip(rows, read, strict=True))
        return torch.stack([logits[row] for row in range(len(ways))])

    def stock_model(self) -> Any:
        """Return the model of transformers that computes all that this LLM does, which is what an export writes.

        Raises:
            ConfigError: there is none.
        """
        raise ConfigError(
            f"model.llm: {type(self).__name__} cannot be exported: it has no stock_model, a model of transformers that"
            " computes the same."
        )


def way_to(token: int, parents: Sequence[int]) -> list[int]:
    """Return the tokens of a tree from its root to one of them; see ``LanguageModel.branch``."""
    way = []
    while token >= 0:
        way.append(token)
        token = parents[token]
    return way[::-1]


class Metric(ABC):
    """What answers are worth: counts that add up over answers, batches and ranks, and one figure of their sums.

    It keeps nothing between calls.

    Attributes:
        best: the figure of right answers.
        pooled: counts of all languages are added; otherwise the figure over several languages is the mean of theirs.
    """

    best: ClassVar[float] = 1.0
    pooled: ClassVar[bool] = True

    @abstractmethod
    def counts(self, reference: str, hypothesis: str, language: str) -> Sequence[float]:
        """Return what one answer adds; as many numbers for every answer.

        Args:
            reference: the right answer.
            hypothesis: what was answered.
            language: of the reference, as its sample names it; may be empty.
        """

    @abstractmethod
    def figure(self, sums: Sequence[float]) -> float:
        """Return the figure of summed counts; nan where they hold nothing to divide by."""

    def over(self, references: Sequence[str], hypotheses: Sequence[str], language: str = "") -> float:
        """Return the figure over some answers; nan without any."""
        rows = [self.counts(*pair, language) for pair in zip(references, hypotheses, strict=True)]
        return self.figure([sum(column) for column in zip(*rows, strict=True)]) if rows else math.nan


@dataclass(frozen=True)
class Task:
    """What can be asked of audio: the words that ask, the field that answers, what answers are worth.

    Attributes:
        name: that of its entry point, and what the field ``task`` of a sample says.
        prompt: the user's words. ``{audio}`` stands for the recording, once; another name in braces for that field of
            the sample, which must have it. An answer to a prompt with ``{target_language}`` is in that language.
        answer_field: the field of a sample that holds the answer.
        default_language: what the answer is in where the sample does not name a language; may be empty.
        metrics: by the name that they are logged under, which no other installed task may use, nor ``loss``, ``error``
            and names with a slash; none scores nothing.
        error: the one of them that ``val/error``, and so the best checkpoint, goes by.
        timed: the answer follows the audio in time, so that it can be made section by section, split at the
            ``segments`` of a recording, and joined.
        transcript: the answer is the words of the recording, which the alignment loss may take for a target.

    Raises:
        ConfigError: one of them is missing, or contradicts another.
    """

    name: str
    prompt: str = ""
    answer_field: str = ""
    default_language: str = ""
    metrics: Mapping[str, Metric] = field(default_factory=dict, compare=False)
    error: str = field(default="", compare=False)
    timed: bool = False
    transcript: bool = False

    def __post_init__(self) -> None:
        if not self.name or self.name == "dialogue":
            raise ConfigError(f"task {self.name!r}: give it another name; 'dialogue' is that of free messages.")
        if not self.answer_field:
            raise ConfigError(f"task {self.name!r}: has no answer_field; name the field of a sample that answers it.")
        if self._names.count("audio") != 1 or not all(name.isidentifier() for name in self._names):
            raise ConfigError(
                f"task {self.name!r}: its prompt {self.prompt!r} must hold {{audio}} once, and in other braces names of"
                " fields only."
            )
        if taken := [name for name in self.metrics if name in ("loss", "error") or "/" in name]:
            raise ConfigError(
                f"task {self.name!r}: its metric {taken[0]!r} needs another name: 'loss' and 'error' are those of a"
                " validation, and what stands behind a slash is a language."
            )
        if self.metrics and self.error not in self.metrics:
            raise ConfigError(
                f"task {self.name!r}: its error is {self.error!r}, which is none of its metrics"
                f" ({', '.join(self.metrics)}); name one of them."
            )

    @property
    def _names(self) -> list[str]:
        try:
            return [name for _, name, *_ in string.Formatter().parse(self.prompt) if name is not None]
        except ValueError:  # a brace alone
            return []

    @property
    def translates(self) -> bool:
        """Whether a request says which language the answer is in."""
        return "target_language" in self._names

    @property
    def needed_fields(self) -> tuple[str, ...]:
        """The fields that a sample must have for the prompt."""
        given = {"audio"} | ({"target_language"} if self.default_language else set())
        return tuple(name for name in dict.fromkeys(self._names) if name not in given)

    def plain(self) -> dict[str, Any]:
        """Return all but the metrics as plain values, which ``Task(**values)`` takes."""
        names = ("name", "prompt", "answer_field", "default_language", "timed", "transcript")
        return {name: getattr(self, name) for name in names}

"""What of a recording reaches the LLM, and at what cost: the settings of the speech side of the path."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from fastslm.audio.rate import SAMPLE_RATE_HZ
from fastslm.contracts import Encoder, TokenBudget
from fastslm.errors import ConfigError
from fastslm.settings import setting

_MOST_CONTEXT_SECONDS = 1.0
#: Whisper base on one core: two windows of 30 s at a time take 0.82 of the time of 16 and a third of their memory.
_CPU_SECONDS_AT_ONCE = 60.0


@dataclass(frozen=True, kw_only=True)
class SpeechSettings:
    """Windows of recordings, and the tokens that they become.

    Attributes:
        window_seconds: audio of a window; with its context at most what the encoder has positions for.
        context_seconds: audio that the encoder sees on either side of a window, whose frames are then dropped: words
            at the edges are whole, for that much more work of the encoder. Null takes what the encoder has positions
            for beyond the window, up to 1 s. The release has none.
        tokens_per_window: LLM tokens of a full window; 50 for 30 s is 1.67 tokens per second. A list trains one model
            for many rates: each optimizer step draws one, the same on every rank, and the first is the one that
            validation and inference take; a checkpoint of such a model may be run at any rate up to the highest.
        tail: the last window of a recording costs tokens in proportion to its audio, or all of them (``full``, the
            release).
        min_recording_seconds: a shorter recording counts as this long, silence follows it (the release: 1).
        encoder_batch_windows: most windows in the encoder at once; bounds memory, whatever the recording's length.
            Null takes 16 on a GPU; on a CPU, where more are slower, as many as hold a minute of audio.
        match_embedding_norm: scale speech tokens to the mean norm of the LLM's embeddings, so that its layers add as
            much to speech as to text; off, tokens have the norm that the abstractor gives them (the release).

    Raises:
        ConfigError: a number is out of its range.
    """

    window_seconds: float = setting(30.0, changes="weights")
    context_seconds: float | None = setting(0.0, changes="run")
    tokens_per_window: int | Sequence[int] = setting(50, changes="weights")
    tail: Literal["proportional", "full"] = setting("proportional", changes="run")
    min_recording_seconds: float = setting(0.0, changes="run")
    encoder_batch_windows: int | None = setting(None, changes="nothing")
    match_embedding_norm: bool = setting(False, changes="run")

    def __post_init__(self) -> None:
        if not 0 < self.window_seconds < math.inf:
            raise ConfigError(f"model.window_seconds: {self.window_seconds:g} must be above 0.")
        if not 0 <= self.min_recording_seconds <= self.window_seconds:
            raise ConfigError(
                f"model.min_recording_seconds: {self.min_recording_seconds:g} must lie between 0 and"
                f" model.window_seconds, {self.window_seconds:g}."
            )
        if self.encoder_batch_windows is not None and self.encoder_batch_windows < 1:
            raise ConfigError(f"model.encoder_batch_windows: {self.encoder_batch_windows} must be at least 1.")
        if not self.rates:
            raise ConfigError("model.tokens_per_window: the list is empty. Give one number or more.")

    @property
    def rates(self) -> tuple[int, ...]:
        """Tokens of a full window, one number for each rate; the first is evaluated."""
        given = self.tokens_per_window
        return (given,) if isinstance(given, int) else tuple(given)

    @property
    def window_samples(self) -> int:
        """Samples of a window."""
        return round(self.window_seconds * SAMPLE_RATE_HZ)

    @property
    def min_recording_samples(self) -> int:
        """Samples that a shorter recording counts as."""
        return round(self.min_recording_seconds * SAMPLE_RATE_HZ)

    def windows_at_once(self, device: torch.device) -> int:
        """Return how many windows are in the encoder at once, at most."""
        on_cpu = max(1, round(_CPU_SECONDS_AT_ONCE / self.window_seconds))
        return self.encoder_batch_windows or (on_cpu if device.type == "cpu" else 16)

    def context_samples(self, encoder: Encoder) -> int:
        """Return the samples of context on either side of a window."""
        if self.context_seconds is not None:
            return round(self.context_seconds * SAMPLE_RATE_HZ)
        if encoder.needs_summary:
            return 0
        most = round(_MOST_CONTEXT_SECONDS * SAMPLE_RATE_HZ)
        if encoder.max_window_seconds is not None:
            most = min(round((encoder.max_window_seconds - self.window_seconds) * SAMPLE_RATE_HZ) // 2, most)
        return most // encoder.samples_per_frame * encoder.samples_per_frame

    def frames_per_window(self, encoder: Encoder) -> int:
        """Return the frames F of a full window."""
        return int(encoder.num_frames(torch.tensor(self.window_samples, device="cpu")))  # under "meta" too

    def budgets(self, encoder: Encoder) -> list[TokenBudget]:
        """Return what audio costs at each of the rates.

        Raises:
            ConfigError: a rate is outside ``1..F``.
        """
        num_frames = self.frames_per_window(encoder)
        return [TokenBudget(num_frames, rate, full_tail=self.tail == "full") for rate in self.rates]

    def check(self, encoder: Encoder) -> None:
        """Check lengths against what the encoder can do.

        Raises:
            ConfigError: windows do not begin with a frame, or are longer than the encoder has positions for.
        """
        step, longest = encoder.samples_per_frame, encoder.max_window_seconds
        limit = "" if longest is None else f", at most the encoder's {longest:g} s"
        fits = self.window_seconds > 0 and (longest is None or self.window_seconds <= longest)
        if self.window_samples % step or not fits:
            raise ConfigError(
                f"model.window_seconds: {self.window_seconds:g} must be a multiple of {step / SAMPLE_RATE_HZ:g} s,"
                f" above 0{limit}."
            )
        context = self.context_samples(encoder)
        room = None if longest is None else round(longest * SAMPLE_RATE_HZ) - self.window_samples
        if context % step or context < 0 or (room is not None and 2 * context > room):
            limit = "" if longest is None else f" at most the encoder's {longest:g} s"
            raise ConfigError(
                f"model.context_seconds: {self.context_seconds:g} must be a multiple of {step / SAMPLE_RATE_HZ:g} s,"
                f" and twice that with model.window_seconds: {self.window_seconds:g}{limit}."
            )
        if context and encoder.margin_samples:
            raise ConfigError(
                "model.context_seconds: with an encoder whose windows see the samples around them (such as"
                " model.encoder.mel_range: recording) windows have no context of their own. Set model.context_seconds"
                " to 0."
            )

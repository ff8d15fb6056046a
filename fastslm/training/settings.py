"""What training does, and how answers are generated: the settings of a model beside its parts and its speech side."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import platformdirs

from fastslm.errors import ConfigError
from fastslm.path.settings import SpeechSettings
from fastslm.settings import setting
from fastslm.training.compilation import check_compilable
from fastslm.training.frame_augment import FrameAugment
from fastslm.training.spec_augment import SpecAugment


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """What trains, and what training adds to the path; a trained model in use knows none of it.

    Attributes:
        train_parts: what trains, of encoder, abstractor, projector, lora and llm.
        alignment_weight: weight of an auxiliary CTC loss between speech tokens and transcript; 0 leaves it out. It
            needs at least as many speech tokens as the transcript has ids, and is of no use beyond that; at lower
            rates set ``letters_per_token``.
        letters_per_token: most letters that a speech token is asked to spell in the alignment loss, which then compares
            letters and not the LLM's ids: 16 for 1.67 tokens per second. 0 compares ids.
        answer_weight: weight of the loss of the answers. 0 trains the compressor by letters alone, and the LLM runs
            neither in training nor in validation, which scores what the tokens spell: many times faster, and a good
            start for a training with the LLM.
        frame_augment: hide, warp and disturb the encoder's frames in training; works with ``frame_cache``, which other
            augmentation does not. Null shows them as they are.
        frame_cache: keep the frozen encoder's frames on disk, so that each window of the corpus is encoded once: true
            for the user's cache folder, or a folder; false or null keeps none. Of no use with augmentation, where no
            window comes twice.
        recompute: run encoder and abstractor again in the backward pass instead of keeping their activations.
        spec_augment: hide bands and stretches of each window's features in training, new ones in every epoch; null
            shows everything. Not together with ``frame_cache``.
        answer_noise: in training show the LLM this share of its answer's past as other words of the answer, 0..0.5: it
            then keeps its place in long audio when it misreads a word.
        mix_style: in training give this share of windows a voice between theirs and that of another window in the
            encoder at the same time (``encoder_batch_windows``), by the statistics of their frames, 0..1; works with
            ``frame_cache``, which other augmentation does not.
        token_noise: in training show the LLM speech tokens with noise of up to this size relative to their own, 0..1:
            it gets used to tokens of voices that the compressor has not seen. The alignment loss sees them without.
            Source: Jain et al., "NEFTune" (ICLR 2024).
        compile_parts: which of encoder, abstractor and llm run through torch.compile, encoder and LLM layer by layer:
            slow to start, then faster. Without a compiler a line says so, and nothing is compiled.

    Raises:
        ConfigError: numbers do not fit each other.
    """

    train_parts: Sequence[str] = setting(("abstractor", "projector", "lora"), changes="run")
    alignment_weight: float = setting(0.0, changes="nothing")
    letters_per_token: int = setting(0, changes="nothing")
    answer_weight: float = setting(1.0, changes="nothing")
    frame_cache: bool | str | None = setting(False, changes="nothing")
    recompute: bool = setting(False, changes="nothing")
    spec_augment: SpecAugment | None = setting(None, changes="nothing")
    frame_augment: FrameAugment | None = setting(None, changes="nothing")
    answer_noise: float = setting(0.0, changes="nothing")
    mix_style: float = setting(0.0, changes="nothing")
    token_noise: float = setting(0.0, changes="nothing")
    compile_parts: Sequence[Literal["encoder", "abstractor", "llm"]] = setting((), changes="nothing")

    def __post_init__(self) -> None:
        for name in ("alignment_weight", "answer_weight"):
            if not 0.0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"model.{name}: {getattr(self, name):g} must be 0 or more, and finite.")
        if not 0 <= self.letters_per_token <= 256:
            raise ConfigError(f"model.letters_per_token: {self.letters_per_token} is outside 0 to 256.")
        if self.letters_per_token and not self.alignment_weight:
            raise ConfigError(
                "model.letters_per_token: the alignment loss that compares letters is off. Set model.alignment_weight."
            )
        self._check_answer_weight()
        for name, most in (("answer_noise", 0.5), ("mix_style", 1.0), ("token_noise", 1.0)):
            if not 0.0 <= getattr(self, name) <= most:
                raise ConfigError(f"model.{name}: {getattr(self, name):g} is outside 0 to {most:g}.")
        if self.frame_cache and self.trains_encoder:
            raise ConfigError(
                "model.frame_cache: the encoder trains (model.train_parts names it), so its frames change at every"
                " step. Set model.frame_cache to false."
            )
        if self.frame_cache and self.spec_augment is not None:
            raise ConfigError(
                "model.spec_augment: it hides other parts of a window in every epoch, and model.frame_cache keeps the"
                " frames of the first. Set model.frame_cache to false, or model.spec_augment to null."
            )
        check_compilable(self.compile_parts)

    def _check_answer_weight(self) -> None:
        if self.answer_weight:
            return
        if not self.letters_per_token:
            raise ConfigError(
                "model.answer_weight: with 0 the compressor trains by letters alone. Set model.letters_per_token (16"
                " for 1.67 tokens per second) and model.alignment_weight, as configs/stage/0_letters.yaml does."
            )
        unread = [part for part in self.train_parts if part in ("lora", "llm")]
        if unread:
            raise ConfigError(
                f"model.answer_weight: with 0 the LLM does not run in training, and model.train_parts names"
                f" {' and '.join(unread)}. Take that out, or raise model.answer_weight."
            )

    @property
    def trains_encoder(self) -> bool:
        """Whether gradients reach the encoder."""
        return "encoder" in self.train_parts

    @property
    def frame_folder(self) -> Path | None:
        """The folder of cached frames; None where none are kept."""
        if not self.frame_cache:
            return None
        if self.frame_cache is True:
            return Path(platformdirs.user_cache_dir("fastslm"), "frames")
        return Path(os.path.expanduser(self.frame_cache))


@dataclass(frozen=True, kw_only=True)
class AnswerSettings:
    """How answers are prompted and how long they may be.

    Attributes:
        enable_thinking: let templates that know it open a thought (Qwen3).
        max_new_tokens: most tokens of a generated answer; null takes 32 and ``new_tokens_per_second`` for each second
            of audio.
        new_tokens_per_second: see ``max_new_tokens``; speech rarely needs more than 4.
        max_generated: most recordings that a validation during training answers in text, the same ones every time;
            null answers all. The loss is always over all of them.

    Raises:
        ConfigError: a number is out of its range.
    """

    enable_thinking: bool = setting(False, changes="run")
    max_new_tokens: int | None = setting(None, changes="nothing")
    new_tokens_per_second: float = setting(4.0, changes="nothing")
    max_generated: int | None = setting(None, changes="nothing")

    def __post_init__(self) -> None:
        if self.max_generated is not None and self.max_generated < 0:
            raise ConfigError(f"model.max_generated: {self.max_generated} must not be below 0.")
        if self.max_new_tokens is not None and self.max_new_tokens < 1:
            raise ConfigError(f"model.max_new_tokens: {self.max_new_tokens} must be at least 1, or null.")
        if not 0 <= self.new_tokens_per_second < math.inf:
            raise ConfigError(f"model.new_tokens_per_second: {self.new_tokens_per_second:g} must be 0 or more.")

    def limit(self, audio_seconds: float) -> int:
        """Return the most tokens of an answer about so much audio."""
        return self.max_new_tokens or int(32 + self.new_tokens_per_second * audio_seconds)


@dataclass(frozen=True, kw_only=True)
class ModelSettings(SpeechSettings, TrainingSettings, AnswerSettings):
    """All settings of a model beside its parts and its optimizer."""

    def __post_init__(self) -> None:
        SpeechSettings.__post_init__(self)
        TrainingSettings.__post_init__(self)
        AnswerSettings.__post_init__(self)
        if self.mix_style and self.encoder_batch_windows == 1:
            raise ConfigError(
                "model.mix_style: windows are mixed with others in the encoder at the same time, and"
                " model.encoder_batch_windows is 1. Set that higher, or model.mix_style to 0."
            )
